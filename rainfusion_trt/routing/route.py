"""``AttentionRoute``: attention of any module as the operator, found by its number of tokens.

For modules that need not be diffusers', as in an export, and for those that are built of other
attention than diffusers': a torch function mode takes the calls of
``F.scaled_dot_product_attention`` over the joint sequence of video and text and leaves the others
(cross-attention, text refiners) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import AttentionLayout
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.routing.autocast import under_autocast


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
    dense_layers : collection of int
        Attentions, numbered from 0, whose sparsity is 0.
    within : collection of nn.Module, optional
        Modules whose attention alone is taken; by default it is told by its tokens wherever it is.
    video_tokens : int, optional
        Of the attentions that it takes, where they are not those of the grid.
    attention : callable, optional
        With the arguments of `rainfusion_attention`, which it is by default.

    Attributes
    ----------
    count
        Attentions taken so far.
    tokens
        Query and key length of those it takes.
    head_size
        Of the attentions it took; None before the first.
    others
        Query and key lengths of the attentions it left alone.
    entered
        Whether it takes calls now.
    """

    def __init__(
        self,
        layout: AttentionLayout,
        sparsity: Tensor,
        settings: AttentionSettings,
        *,
        dense_layers: Collection[int] = (),
        within: Collection[nn.Module] = (),
        video_tokens: int | None = None,
        attention: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        settings.check_model_wide()
        frames, height, width = layout.grid.shape
        self.tokens = layout.tokens
        if video_tokens is not None:
            self.tokens = video_tokens + layout.text_tokens
        elif self.tokens is None:
            self.tokens = frames * height * width + layout.text_tokens
        self._operator = rainfusion_attention if attention is None else attention
        self._layout = layout
        self._sparsity = sparsity
        self._dense_layers = dense_layers
        self._within = within
        self._depth = 0  # in modules of those
        self._hooks: list[Any] = []
        self._settings = settings.replace(text=layout.text)
        self.count = 0
        self.head_size: int | None = None
        self.entered = False
        self.others: list[tuple[int, int]] = []

    def __enter__(self) -> AttentionRoute:
        self.entered = True
        for module in self._within:
            self._hooks.append(module.register_forward_pre_hook(self._go_in))
            self._hooks.append(module.register_forward_hook(self._come_out, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.entered = False
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _go_in(self, *_: Any) -> None:
        self._depth += 1

    def _come_out(self, *_: Any) -> None:
        self._depth -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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
        elsewhere = bool(self._within) and not self._depth
        if elsewhere or query.shape[-2] != self.tokens or key.shape[-2] != self.tokens:
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
        sparsity = self._sparsity.to(query.device)
        if self.count in self._dense_layers:
            sparsity = torch.zeros_like(sparsity)
        self.count += 1
        self.head_size = query.shape[-1]
        settings = self._settings.replace(scale=scale or 0.0).attributes()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layout = self._layout
            return self._operator(
                q, k, v, layout.grid, sparsity=sparsity, kv_len=layout.kv_len, **settings
            )

        return under_autocast(attend, query, key, value)

    def _check_kv_len(self, query: Tensor) -> None:
        """A traced graph would broadcast another number of lengths; extents that vary are equal."""
        kv_len = self._layout.kv_len
        if kv_len is None:
            return
        lengths: Any = kv_len.shape[0]  # torch.SymInt where it varies
        batch: Any = query.shape[0]
        if isinstance(lengths, int) and isinstance(batch, int) and lengths != batch:
            raise InvalidInputError(
                f"kv_len has {lengths} lengths for a batch of {batch}; it must be int32 [B]"
            )
