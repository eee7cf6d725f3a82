"""A graph that asks for the log-sum-exp: torch.export keeps it, the ONNX export refuses it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.plain_dit import GRID, PlainDiT, example
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.export import export_module
from rainfusion_trt.operator.ops import rainfusion_attention


class WithLse(nn.Module):
    """A transformer whose output depends on a log-sum-exp."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PlainDiT()

    def forward(self, latents, text):
        video = self.inner(latents, text)
        tokens = video.mean(1)[:, None, :, ::2, ::2].flatten(2)[..., None].expand(-1, -1, -1, 16)
        _, lse = rainfusion_attention(tokens, tokens, tokens, GRID, return_lse=True)
        return video + lse.mean()


def test_onnx_export_refuses_the_log_sum_exp(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(UnsupportedError, match=r"WithLse .*return_lse=True.*no log-sum-exp"):
        export_module(WithLse().eval(), example(), grid=GRID, text="none", output=path)
    assert not list(tmp_path.iterdir())


def test_torch_export_keeps_both_outputs():
    module, inputs = WithLse().eval(), example()
    with torch.no_grad():
        program = torch.export.export(module, (), inputs, strict=False)
        torch.testing.assert_close(program.module()(**inputs), module(**inputs))
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.rainfusion.attention_lse.default in targets
