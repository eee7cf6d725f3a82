"""vLLM-Omni: what its entry point calls, and the geometry of its packed sequences.

vLLM-Omni names a backend ``RAINFUSION_ATTN`` that it has for Ascend NPUs alone. :func:`register`
puts a subclass in its place that also runs on NVIDIA GPUs. vLLM-Omni is imported only there.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.operator.settings import METHODS, PRECISIONS, AttentionSettings

METHOD_VARIABLE = "RAINFUSION_TRT_METHOD"
PRECISION_VARIABLE = "RAINFUSION_TRT_PRECISION"


def register() -> None:
    """Make ours the class behind ``RAINFUSION_ATTN``; may be called many times."""
    from vllm_omni.diffusion.attention.backends.registry import (
        DiffusionAttentionBackendEnum,
        register_diffusion_backend,
    )

    register_diffusion_backend(
        DiffusionAttentionBackendEnum.RAINFUSION_ATTN,
        "rainfusion_trt.integrations.vllm_omni_backend.RainFusionBackend",
    )


def settings_of_environment(scale: float) -> AttentionSettings:
    """The operator's settings, which vLLM-Omni's configuration has no fields for.

    Parameters
    ----------
    scale
        Softmax scale of the layer.

    Raises
    ------
    InvalidInputError
        ``RAINFUSION_TRT_METHOD`` names no method, or ``RAINFUSION_TRT_PRECISION`` no precision.
        Unset, they are the package's defaults.
    UnsupportedError
        8 bits with a method that has none.
    """
    method = _from_environment(METHOD_VARIABLE, METHODS) or AttentionSettings.method
    precision = _from_environment(PRECISION_VARIABLE, PRECISIONS) or AttentionSettings.precision
    return AttentionSettings.of(method=method, scale=scale, precision=precision)


def _from_environment(variable: str, choices: tuple[str, ...]) -> str | None:
    value = os.environ.get(variable) or None
    if value is not None and value not in choices:
        raise InvalidInputError(f"{variable}={value!r} is not one of {', '.join(choices)}")
    return value


class Segment(NamedTuple):
    """Where the generated video lies in a sequence of S rows.

    Attributes
    ----------
    start : int
        Its first row.
    grid : tuple of int
        T, H and W in tokens.
    used : int
        Rows that are no padding; the video and everything it attends to lie before.
    """

    start: int
    grid: tuple[int, int, int]
    used: int

    @property
    def end(self) -> int:
        """The row after its last."""
        return self.start + self.grid[0] * self.grid[1] * self.grid[2]

    @classmethod
    def of(cls, layout: Any, used: int) -> Segment:
        """Read vLLM-Omni's ``VideoTokenLayout``, which has one video or exactly one target."""
        if layout.video_spans:
            (target,) = (span for span in layout.video_spans if span.role == "target")
            start, grid = target.start, target.latent_grid
        else:
            start, grid = layout.prefix_len, layout.latent_grid
        frames, height, width = (int(size) for size in grid)
        return cls(int(start), (frames, height, width), int(used))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment: Segment,
    sparsity: float,
    settings: AttentionSettings,
) -> Tensor:
    """RainFusion attention over a packed sequence; what is no generated video stays dense.

    Parameters
    ----------
    query, key, value
        [B, S, N, D].
    segment
        Place of the video. Rows behind `segment.used` are padding.
    sparsity
        In [0, 1).
    settings
        Their text place is not read.

    Returns
    -------
    Tensor
        [B, S, N, D]; in rows of padding the query's, which nobody reads.
    """
    start, end, used = segment.start, segment.end, segment.used
    others = used - (end - start)

    def video_last(x: Tensor) -> Tensor:
        # Without a causal mask attention does not depend on the order of the rows.
        if end == used:
            return x[:, :used].transpose(1, 2)
        return torch.cat((x[:, :start], x[:, end:used], x[:, start:end]), 1).transpose(1, 2)

    q, k, v = (video_last(x) for x in (query, key, value))
    out = rainfusion_attention(
        q,
        k,
        v,
        segment.grid,
        text="first" if others else "none",
        sparsity=sparsity,
        method=settings.method,
        alpha=settings.alpha,
        sink_frames=settings.sink_frames,
        last_sink_frames=settings.last_sink_frames,
        exact_frames=settings.exact_frames,
        scale=settings.scale,
        precision=settings.precision,
    ).transpose(1, 2)
    if end != used:
        out = torch.cat((out[:, :start], out[:, others:], out[:, start:others]), 1)
    return out if used == query.shape[1] else torch.cat((out, query[:, used:]), 1)
