"""Our CUDA half of ``RAINFUSION_ATTN``, behind vLLM-Omni's own selector and configuration."""

from __future__ import annotations

import importlib
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from helpers.required import aside
from helpers.vllm_omni_loaded import vllm_omni_loaded
from rainfusion_trt import rainfusion_attention
from rainfusion_trt.errors import InvalidInputError, LibraryNotFoundError, UnsupportedError
from rainfusion_trt.operator.settings import AttentionSettings

GRID = (5, 16, 16)  # ten blocks of 128 keys
VIDEO = math.prod(GRID)
HEADS, SIZE = 2, 16
SCALE = SIZE**-0.5
OURS = "rainfusion_trt.integrations.vllm_omni"


@pytest.fixture(scope="module")
def omni():
    with vllm_omni_loaded(aside("vllm-omni")):
        load = importlib.import_module
        attention = "vllm_omni.diffusion.attention"
        modules = SimpleNamespace(
            abstract=load(f"{attention}.backends.abstract"),
            theirs=load(f"{attention}.backends.rainfusion_attn"),
            selector=load(f"{attention}.selector"),
            data=load("vllm_omni.diffusion.data"),
            ours=load(OURS),
            backend=load(f"{OURS}_backend"),
        )
        modules.ours.register()
        modules.ours.register()  # each process does, some twice
        modules.theirs._MIN_VIDEO_BLOCKS = 1  # so that a small grid is worth it there
        yield modules


@pytest.fixture
def select(omni, monkeypatch):
    """vLLM-Omni's way from a configuration to the attention of a layer."""
    monkeypatch.setattr(omni.backend, "load_library", lambda: None)

    def attention(prefix="blocks.3.attn1", layout="BSND", **block_sparse):
        spec = {"backend": "RAINFUSION_ATTN", "block_sparse": block_sparse}
        config = omni.data.AttentionConfig(default=spec)
        backend, found = omni.selector.get_attn_backend_for_role("self", SIZE, config)
        return backend.get_impl_cls()(
            num_heads=HEADS,
            head_size=SIZE,
            softmax_scale=SCALE,
            prefix=prefix,
            qkv_layout=layout,
            backend_kwargs=found.backend_kwargs(),
            role="self",
        )

    return attention


def tensors(rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(1, rows, HEADS, SIZE, generator=generator) for _ in range(3)]


def dense(q, k, v, used: int) -> torch.Tensor:
    q, k, v = (x[:, :used].transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def tail(omni, prefix: int):
    return omni.abstract.VideoTokenLayout(prefix, GRID, prefix + VIDEO)


def spans(omni, before: int, after: int):
    """A reference clip, the target and what follows it."""
    span = omni.abstract.VideoTokenSpan
    clips = (span(0, (1, 16, before // 16), "reference"), span(before, GRID, "target"))
    return omni.abstract.VideoTokenLayout(used_len=before + VIDEO + after, video_spans=clips)


def forward(omni, impl, qkv, layout, **metadata):
    metadata = omni.abstract.AttentionMetadata(video_layout=layout, **metadata)
    return impl.forward(*qkv, metadata)


def test_selected_by_name_on_cuda_and_theirs_on_an_npu(omni, select):
    impl = select(sparsity=0.5)
    assert type(impl) is omni.backend.RainFusionImpl
    assert omni.backend.RainFusionBackend.supported_platforms == ("npu", "cuda")
    assert type(impl).forward_npu is omni.theirs.RainFusionAttentionImpl.forward_npu


def test_kernels_are_missed_before_a_model_is_built(omni, monkeypatch):
    def missing():
        raise LibraryNotFoundError("no library; build it")

    monkeypatch.setattr(omni.backend, "load_library", missing)
    with pytest.raises(ValueError, match="RAINFUSION_ATTN: no library; build it"):
        omni.selector._cached_get_backend_cls("RAINFUSION_ATTN", 99)


def test_a_video_behind_a_prefix(omni, select):
    prefix, padding = 24, 8
    used = prefix + VIDEO
    q, k, v = tensors(used + padding)
    out = forward(omni, select(sparsity=0.7), (q, k, v), tail(omni, prefix))
    expected = rainfusion_attention(
        *(x[:, :used].transpose(1, 2) for x in (q, k, v)),
        GRID,
        text="first",
        sparsity=0.7,
    ).transpose(1, 2)
    assert torch.equal(out[:, :used], expected)
    assert torch.isfinite(out).all() and out.shape == q.shape
    assert (out[:, :used] - dense(q, k, v, used)).abs().max() > 0.01
    # The rows of the prefix attend to everything.
    torch.testing.assert_close(out[:, :prefix], dense(q, k, v, used)[:, :prefix])


def test_a_target_between_other_rows(omni, select):
    before, after = 128, 40
    used = before + VIDEO + after
    q, k, v = tensors(used)
    layout = spans(omni, before, after)
    out = forward(omni, select(sparsity=0.7), (q, k, v), layout)
    others = [*range(before), *range(before + VIDEO, used)]
    torch.testing.assert_close(out[:, others], dense(q, k, v, used)[:, others])
    # As if all else had been in front.
    order = [*others, *range(before, before + VIDEO)]
    moved = forward(
        omni, select(sparsity=0.7), [x[:, order] for x in (q, k, v)], tail(omni, before + after)
    )
    assert torch.equal(out[:, order], moved)
    # So little that no key is left out: dense attention, and every row in its place.
    full = forward(omni, select(sparsity=1e-9), (q, k, v), layout)
    torch.testing.assert_close(full, dense(q, k, v, used))


@pytest.mark.parametrize(
    "settings, metadata, reason",
    [
        ({"sparsity": 0.0}, {}, "its sparsity is 0"),
        ({"sparsity": 0.5, "skip_layers": "2-3"}, {}, "layer 3 is in skip_layers"),
        ({"sparsity": 0.5, "start_step": 4}, {}, "start_step=4 and end_step=0"),
        ({"sparsity": 0.5}, {"full_attn_spans": [[(0, 1)]]}, "full_attn_spans"),
        ({"sparsity": 0.5, "layout": None}, {}, "does not declare qkv_layout"),
    ],
)
def test_dense_is_as_theirs_and_said_once(
    omni, select, caplog, monkeypatch, settings, metadata, reason
):
    monkeypatch.setattr(
        "vllm_omni.diffusion.attention.backends.flash_attn.piecewise_attn",
        lambda q, k, v, *_, **__: dense(q, k, v, VIDEO),
    )
    impl = select(**settings)
    qkv = tensors(VIDEO)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            out = forward(omni, impl, qkv, tail(omni, 0), **metadata)
    torch.testing.assert_close(out, dense(*qkv, VIDEO))
    assert sum(reason in record.getMessage() for record in caplog.records) == 1


def test_a_clip_too_short_to_be_sparse_is_said(omni, select, caplog):
    layout = omni.abstract.VideoTokenLayout(0, (2, 8, 8), 128)
    qkv = tensors(128)
    out = forward(omni, select(sparsity=0.5), qkv, layout)
    torch.testing.assert_close(out, dense(*qkv, 128))
    assert "sparsity=0.5 has no effect: the clip has 2 latent frames" in caplog.text


def test_errors(omni, select, monkeypatch):
    with pytest.raises(InvalidInputError, match="sparsity=1 must be below 1"):
        select(sparsity=1.0)
    with pytest.raises(InvalidInputError, match="precision='fp8' has no CUDA kernel"):
        select(sparsity=0.5, precision="fp8")
    with pytest.raises(InvalidInputError, match="do not hold the 1280 rows"):
        forward(omni, select(sparsity=0.5), tensors(VIDEO - 1), tail(omni, 0))
    monkeypatch.setenv("RAINFUSION_TRT_METHOD", "best")
    with pytest.raises(InvalidInputError, match="RAINFUSION_TRT_METHOD='best' is not one of"):
        select(sparsity=0.5)


def test_the_method_of_the_environment(omni, select, monkeypatch):
    qkv = tensors(VIDEO)
    monkeypatch.setenv("RAINFUSION_TRT_METHOD", "rainfusion2")
    assert select(sparsity=0.5).settings.method == "rainfusion2"
    other = forward(omni, select(sparsity=0.5), qkv, tail(omni, 0))
    monkeypatch.delenv("RAINFUSION_TRT_METHOD")
    assert select(sparsity=0.5).settings.method == AttentionSettings.method
    assert not torch.equal(other, forward(omni, select(sparsity=0.5), qkv, tail(omni, 0)))


def test_the_precision_of_the_environment(omni, select, monkeypatch):
    monkeypatch.setenv("RAINFUSION_TRT_PRECISION", "8bit")
    implementation = select(sparsity=0.5)
    assert implementation.settings.precision == "8bit"
    with pytest.raises(UnsupportedError, match="no kernel for head size 16, only for 64 and 128"):
        forward(omni, implementation, tensors(VIDEO), tail(omni, 0))
    monkeypatch.setenv("RAINFUSION_TRT_PRECISION", "fp8")
    with pytest.raises(InvalidInputError, match="RAINFUSION_TRT_PRECISION='fp8' is not one of"):
        select(sparsity=0.5)


def test_the_entry_point_names_what_registers():
    """Imported without vLLM-Omni here, as in an installation without it."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    group = project.partition('[project.entry-points."vllm_omni.general_plugins"]\n')[2]
    assert group.startswith(f'rainfusion-trt = "{OURS}:register"\n')
    assert callable(importlib.import_module(OURS).register)
