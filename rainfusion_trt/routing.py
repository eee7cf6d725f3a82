"""``enable`` and ``disable``: RainFusion attention in a diffusers transformer, in PyTorch.

Diffusers' attention, in both of its call styles, ends in ``F.scaled_dot_product_attention`` at
[B, N, S, D]. While a routed forward runs, a torch function mode takes the calls over the joint
sequence of video and text and leaves the others (cross-attention, text refiners) alone.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rainfusion_trt.errors import InvalidInputError, RainFusionError, UnsupportedError
from rainfusion_trt.models import AttentionLayout, VideoModel, get_model, model_of
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.operator.settings import AttentionSettings, Method

__all__ = [
    "AttentionRoute",
    "AttentionSettings",
    "RainFusionSettings",
    "Routing",
    "disable",
    "enable",
]

_HANDLE = "_rainfusion_routing"


RainFusionSettings = AttentionSettings
"""The name of version 0.1."""


class AttentionRoute(TorchFunctionMode):
    """While entered, self-attention over the layout's tokens is RainFusion attention.

    Parameters
    ----------
    layout : AttentionLayout
        Of the forward call; it says where the text tokens stand.
    sparsity : Tensor
        float32 [1].
    settings : AttentionSettings
        Of the whole model, without text and scale.

    Attributes
    ----------
    count
        Attentions taken so far.
    tokens
        Query and key length of those it takes.
    others
        Query and key lengths of the attentions it left alone.
    """

    def __init__(
        self, layout: AttentionLayout, sparsity: Tensor, settings: AttentionSettings
    ) -> None:
        super().__init__()
        settings.check_model_wide()
        frames, height, width = layout.grid.shape
        self.tokens = frames * height * width + layout.text_tokens
        self._layout = layout
        self._sparsity = sparsity
        self._settings = settings.replace(text=layout.text)
        self.count = 0
        self.others: list[tuple[int, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.shape[-2] != self.tokens or key.shape[-2] != self.tokens:
            self.others.append((query.shape[-2], key.shape[-2]))
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
        if query.dim() != 4 or query.shape[-1] != value.shape[-1]:
            raise UnsupportedError(
                f"attention over {self.tokens} tokens has q of shape {tuple(query.shape)} and v of "
                f"{tuple(value.shape)}; RainFusion takes [B, N, S, D] with one head size"
            )
        if dropout_p or is_causal or query.shape[1] != key.shape[1]:
            raise UnsupportedError(
                f"attention over {self.tokens} tokens with dropout_p={dropout_p}, is_causal="
                f"{is_causal}, {query.shape[1]} query and {key.shape[1]} key heads: RainFusion has "
                "none of dropout, causal masks and grouped heads"
            )
        if attn_mask is not None and self._layout.kv_len is None:
            raise UnsupportedError(
                f"attention over {self.tokens} tokens has a mask of shape "
                f"{tuple(attn_mask.shape)}, and the model's layout gives no kv_len in its place; a "
                "mask that only hides padding at the end is the number of valid tokens, kv_len, "
                "and other masks RainFusion does not have"
            )
        self._check_kv_len(query)
        self.count += 1
        return rainfusion_attention(
            query,
            key,
            value,
            self._layout.grid,
            sparsity=self._sparsity.to(query.device),
            kv_len=self._layout.kv_len,
            **self._settings.replace(scale=scale or 0.0).attributes(),
        )

    def _check_kv_len(self, query: Tensor) -> None:
        """A traced graph would broadcast another number of lengths; extents that vary are equal."""
        kv_len = self._layout.kv_len
        if kv_len is None or isinstance(kv_len.shape[0], torch.SymInt):
            return
        if isinstance(query.shape[0], int) and kv_len.shape[0] != query.shape[0]:
            raise InvalidInputError(
                f"kv_len has {kv_len.shape[0]} lengths for a batch of {query.shape[0]}; it must be "
                "int32 [B]"
            )


class Routing:
    """What :func:`enable` returns: the sparsity of the next calls and what was routed.

    Attributes
    ----------
    model : VideoModel
        How the transformer's inputs are read.
    settings : AttentionSettings
        Fixed until :func:`disable`.
    routed : int
        Self-attentions routed in the latest forward.
    """

    def __init__(
        self, model: VideoModel, settings: AttentionSettings, sparsity: float, device: torch.device
    ) -> None:
        self.model = model
        self.settings = settings
        self.routed = 0
        self._own_forward = None  # what transformer.forward was overridden with before
        self._forward = None
        self._tensor = torch.zeros(1, dtype=torch.float32, device=device)
        self.sparsity = sparsity

    @property
    def sparsity(self) -> float:
        """s in [0, 1), 0 = dense. Setting it writes the device tensor that the kernels read, so a
        captured CUDA graph follows it too."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        if not 0.0 <= value < 1.0:
            raise InvalidInputError(f"sparsity={value} must be in [0, 1); 0 is dense attention")
        self._sparsity = float(value)
        self._tensor.fill_(self._sparsity)

    def put_into(self, transformer: nn.Module) -> None:
        """Override the transformer's forward."""
        self._own_forward = transformer.__dict__.get("forward")
        self._forward = _routed(transformer, self)
        setattr(transformer, _HANDLE, self)
        transformer.forward = self._forward

    def take_out_of(self, transformer: nn.Module) -> None:
        """Undo :meth:`put_into`."""
        if transformer.__dict__.get("forward") is not self._forward:
            return  # wrapped since, by offloading hooks; what they wrap passes calls through now
        if self._own_forward is None:
            del transformer.forward
        else:
            transformer.forward = self._own_forward

    def route(self, transformer: nn.Module, call: dict[str, Any]) -> AttentionRoute:
        """The mode for one forward call with the keyword arguments `call`."""
        layout = self.model.layout(transformer, call)
        if self._tensor.device != layout.grid.device:  # the transformer was moved since
            self._tensor = self._tensor.to(layout.grid.device)
        return AttentionRoute(layout, self._tensor, self.settings)


def enable(
    transformer: nn.Module,
    *,
    sparsity: float = 0.5,
    method: Method = AttentionSettings.method,
    alpha: float = AttentionSettings.alpha,
    sink_frames: int = AttentionSettings.sink_frames,
    model: str | VideoModel | None = None,
) -> Routing:
    """Route the self-attention of a diffusers transformer through RainFusion.

    Parameters
    ----------
    transformer
        ``pipe.transformer``; its weights and its code stay untouched.
    sparsity, method, alpha, sink_frames
        As :func:`rainfusion_trt.rainfusion_attention`.
    model
        Registry name, needed only where the class and configuration do not tell.

    Returns
    -------
    Routing
        Set its ``sparsity`` between calls, for example 0 for the first steps.

    Raises
    ------
    InvalidInputError
        Bad settings, an unknown `model`, or routing is on already.
    UnsupportedError
        The transformer belongs to no known model.

    Examples
    --------
    >>> routing = rainfusion_trt.enable(pipe.transformer, sparsity=0.5)
    >>> video = pipe("a red fox in the snow").frames[0]
    >>> rainfusion_trt.disable(pipe.transformer)
    """
    if hasattr(transformer, _HANDLE):
        raise InvalidInputError(
            "RainFusion is on already for this transformer; set .sparsity of what enable() "
            "returned, or call disable() first"
        )
    if model is None:
        model = model_of(transformer)
    elif isinstance(model, str):
        model = get_model(model)
    settings = AttentionSettings(method=method, alpha=alpha, sink_frames=sink_frames)
    device = next(transformer.parameters()).device
    routing = Routing(model, settings, sparsity, device)
    routing.put_into(transformer)
    return routing


def disable(transformer: nn.Module) -> None:
    """Put the transformer's own attention back.

    Raises
    ------
    InvalidInputError
        RainFusion is not on.
    """
    routing = transformer.__dict__.pop(_HANDLE, None)
    if routing is None:
        raise InvalidInputError("RainFusion is not on for this transformer; call enable() first")
    routing.take_out_of(transformer)


def _routed(transformer: nn.Module, routing: Routing) -> Any:
    """`transformer.forward` with its self-attention routed as long as `routing` is on."""
    original = transformer.forward
    signature = inspect.signature(type(transformer).forward)

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if getattr(transformer, _HANDLE, None) is not routing:
            return original(*args, **kwargs)
        call = signature.bind(transformer, *args, **kwargs).arguments
        with routing.route(transformer, call) as route:
            output = original(*args, **kwargs)
        routing.routed = route.count
        if route.count == 0:
            raise RainFusionError(
                f"no self-attention of {type(transformer).__name__} was routed: none of its calls "
                "reached F.scaled_dot_product_attention with the tokens of "
                f"{routing.model.name}; set the native attention backend "
                "(transformer.set_attention_backend('native')) or disable RainFusion"
            )
        return output

    return forward
