"""ComfyUI: RainFusion attention behind its attention hook. Nothing of ComfyUI is imported here.

ComfyUI hands every attention of a model to ``transformer_options["optimized_attention_override"]``
and calls wrappers of the kind "diffusion_model" around its forward. The wrapper reads off the
forward where the video lies; the override finds the attention over those tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rainfusion_trt.errors import DenseAttentionError, InvalidInputError
from rainfusion_trt.integrations.comfyui_models import Place, place_of
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.operator.sparse_grid import explain_obstacle, obstacle_to_sparsity

_log = logging.getLogger(__name__)

KEY = "rainfusion_trt"
OVERRIDE = "optimized_attention_override"


@dataclass(frozen=True)
class Wanted:
    """What a user asks for.

    Parameters
    ----------
    settings
        Method, sink frames and precision.
    sparsity
        In [0, 1).
    dense_steps
        Denoising steps at the start that stay dense.
    allow_dense
        Whether what cannot be sparse runs dense, with a line in the log, and is no error.

    Raises
    ------
    InvalidInputError
        A value out of range.
    """

    settings: AttentionSettings
    sparsity: float
    dense_steps: int = 0
    allow_dense: bool = False
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise InvalidInputError(f"sparsity={self.sparsity} must be in [0, 1)")
        if self.dense_steps < 0:
            raise InvalidInputError(f"dense_steps={self.dense_steps} must be 0 or more")

    def refuse(self, reason: str) -> None:
        """Raise, or log once where dense attention is permitted."""
        if not self.allow_dense:
            raise DenseAttentionError(f"RainFusion attention: {reason}; tick allow_dense to run it")
        if reason not in self._said:
            self._said.add(reason)
            _log.warning("RainFusion attention: %s (dense, as allow_dense permits)", reason)


@dataclass
class _Forward:
    """One forward of the model: the place of its video, and what was found of it."""

    place: Place
    routed: int = 0
    mask: Tensor | None = None  # the latest, and its valid length
    kv_len: Tensor | None = None


class _Attention(NamedTuple):
    """A call of ComfyUI's attention, [B, N, S, D]."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float | None
    joined: bool  # whether heads are joined in the output, [B, S, N * D]

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> _Attention:
        if not skip_reshape:
            q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return cls(q, k, v, mask, scale, not skip_output_reshape)


def patch(model: Any, wanted: Wanted) -> Any:
    """A clone of a ComfyUI ``ModelPatcher`` whose video attention is RainFusion's.

    Parameters
    ----------
    model
        A loaded model.
    wanted
        Sparsity and settings.

    Raises
    ------
    DenseAttentionError
        The model's class is none of those that are known, or it was patched before; and later, in
        a forward, no attention over its video was found or that cannot be sparse.
    """
    diffusion_model = model.get_model_object("diffusion_model")
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    if KEY in options:
        raise DenseAttentionError("the model has RainFusion attention already; remove one node")
    if (reader := place_of(diffusion_model)) is None:
        wanted.refuse(
            f"{type(diffusion_model).__name__} is none of the models that are known: Wan, "
            "HunyuanVideo, LTX-Video and CogVideoX"
        )
        return patched
    # Functions, since ComfyUI copies options deeply, objects with methods included.
    options[OVERRIDE] = _override(wanted, options.get(OVERRIDE))
    options[KEY] = None
    patched.add_wrapper_with_key("diffusion_model", KEY, _wrapper(wanted, reader))
    return patched


def _wrapper(wanted: Wanted, reader: Callable[..., Place]) -> Callable[..., Any]:
    """Around every forward of the diffusion model."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(executor.original).bind(*args, **kwargs)
        call = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        options = call.get("transformer_options") or {}
        if wanted.sparsity == 0.0 or is_dense_step(wanted, options):
            return executor(*args, **kwargs)
        place = reader(executor.class_obj, call)
        obstacle = place.problem or _obstacle(place, wanted, None)
        if obstacle is not None:
            wanted.refuse(obstacle)
            return executor(*args, **kwargs)
        forward = _Forward(place)
        bound.arguments["transformer_options"] = {**options, KEY: forward}
        out = executor(*bound.args, **bound.kwargs)
        if not forward.routed:
            wanted.refuse(
                f"no attention of {type(executor.class_obj).__name__} is over the "
                f"{place.video} tokens of the grid {place.grid}"
            )
        return out

    return wrapper


def _override(wanted: Wanted, previous: Callable[..., Any] | None) -> Callable[..., Any]:
    """For every attention; what is not over the video goes the way that it had."""

    def override(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or {}
        forward: _Forward | None = options.get(KEY)
        if forward is not None:
            attention = _Attention.of(*args, **kwargs)
            if forward.place.holds(attention.q.shape[2], attention.k.shape[2]):
                forward.routed += 1
                reason = _obstacle(forward.place, wanted, attention.q.shape[-1])
                if reason is None and not _is_padding(attention, forward):
                    reason = "an attention mask hides more than padding at the end of the text"
                if reason is None:
                    return _sparse(attention, forward, wanted)
                wanted.refuse(reason)
        if previous is not None:
            return previous(original, *args, **kwargs)
        return original(*args, **kwargs)

    return override


def _obstacle(place: Place, wanted: Wanted, head_size: int | None) -> str | None:
    """Why a clip is dense at any sparsity; what only its attention tells needs the head size."""
    found = obstacle_to_sparsity(place.grid, wanted.settings, head_size)
    if found is None:
        return None
    return explain_obstacle(found, place.grid, wanted.settings, wanted.sparsity)


def _sparse(attention: _Attention, forward: _Forward, wanted: Wanted) -> Tensor:
    place, settings = forward.place, wanted.settings
    others = attention.q.shape[2] - place.video
    out = rainfusion_attention(
        attention.q,
        attention.k,
        attention.v,
        place.grid,
        text=place.text if others else "none",
        sparsity=wanted.sparsity,
        kv_len=forward.kv_len,
        method=settings.method,
        alpha=settings.alpha,
        sink_frames=settings.sink_frames,
        last_sink_frames=settings.last_sink_frames,
        exact_frames=settings.exact_frames,
        scale=attention.scale,
        precision=settings.precision,
    )
    return out.transpose(1, 2).flatten(2) if attention.joined else out


def _is_padding(attention: _Attention, forward: _Forward) -> bool:
    """Whether the mask, if any, hides a tail of the keys alone; its length goes into `forward`."""
    mask = attention.mask
    if mask is None:
        forward.mask = forward.kv_len = None
    elif mask is not forward.mask:  # one serves all blocks, and reading it waits for the GPU
        batch, tokens = attention.q.shape[0], attention.k.shape[2]
        seen = mask == 0 if mask.is_floating_point() else mask.bool()
        rows = seen.reshape(seen.shape[0] if seen.dim() > 2 else 1, -1, tokens)
        lengths = rows[:, 0].sum(-1)
        places = torch.arange(tokens, device=mask.device)
        if not bool((rows == (places < lengths[:, None])[:, None]).all()):
            return False
        forward.mask, forward.kv_len = mask, lengths.int().expand(batch).contiguous()
    return True


def is_dense_step(wanted: Wanted, options: Mapping[str, Any]) -> bool:
    """Whether the sampler is at one of the first steps, which stay dense.

    Raises
    ------
    InvalidInputError
        There are such steps, and it does not say its sigmas.
    """
    if not wanted.dense_steps:
        return False
    levels, now = options.get("sample_sigmas"), options.get("sigmas")
    if levels is None or now is None:
        raise InvalidInputError(
            f"dense_steps={wanted.dense_steps} needs a sampler that says its sigmas; set it to 0"
        )
    steps = len(levels) - 1
    if wanted.dense_steps >= steps:
        wanted.refuse(f"dense_steps={wanted.dense_steps} leaves none of the {steps} steps sparse")
    # Steps whose noise was higher than the noise now.
    return int((levels.to(now) > now.max() * (1 + 1e-5)).sum()) < wanted.dense_steps
