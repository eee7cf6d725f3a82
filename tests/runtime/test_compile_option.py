"""Who may be compiled: the PyTorch transformer, by an option of the pipeline and of the command."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from helpers.packed_model import Packed, PackedTransformer
from rainfusion_trt import cli, enable
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.routing import compile_blocks
from rainfusion_trt.runtime import pipeline
from rainfusion_trt.runtime.loading import load_denoiser


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "onnxruntime"])
def test_graphs_are_not_compiled(name):
    nothing: Any = SimpleNamespace(parts=())
    with pytest.raises(UnsupportedError, match=f"compile=True .* is {name}: leave it out, or use"):
        load_denoiser(name, nothing, device="cpu", cuda_graph=False, allow_dense=True, compile=True)


def test_no_blocks_to_compile():
    transformer = PackedTransformer()
    routing = enable(transformer, model=Packed())
    with pytest.raises(UnsupportedError, match="PackedTransformer .* leave out compile=True"):
        compile_blocks(routing)


@pytest.mark.parametrize("given", [True, False])
def test_options_of_the_command(monkeypatch, tmp_path, given):
    seen = {}

    def made(*_: Any, **options: Any) -> None:
        seen.update(options)
        raise InvalidInputError("far enough")

    monkeypatch.setattr(pipeline, "Pipeline", made)
    arguments = ["run", "--prompt", "x", "--checkpoint", "no", "--output", str(tmp_path / "x.mp4")]
    options = ["--compile", "--alpha", "0.8", "--sink-frames", "2", "--last-sink-frames", "1"]
    options += ["--exact-frames", "12", "--exact-frames", "24:26"]
    result = CliRunner().invoke(cli.app, arguments + options * given)
    assert result.exit_code == 2 and "far enough" in result.stderr
    assert seen["compile"] is given
    assert (seen["alpha"], seen["sink_frames"]) == ((0.8, 2) if given else (None, None))
    assert seen["last_sink_frames"] == (1 if given else None)
    assert seen["exact_frames"] == ((12, (24, 26)) if given else None)


def test_compiling_is_undone_where_it_fails(monkeypatch):
    """`enable` too: the transformer is the user's."""
    from rainfusion_trt.operator.settings import AttentionSettings
    from rainfusion_trt.routing import routing_of
    from rainfusion_trt.runtime.torch_denoiser import TorchDenoiser
    from tests.helpers.routed_models import tiny

    model, transformer = tiny("wan2.1-1.3b")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TorchDenoiser(transformer, model, AttentionSettings(), compile=True)
    assert routing_of(transformer) is None
