"""``RoutedProcessor``: what the processors of all families share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.routing.parallel import Ulysses
from rainfusion_trt.routing.sequence import sequence_attention

if TYPE_CHECKING:
    from rainfusion_trt.routing.site import Tokens
    from rainfusion_trt.routing.state import Routing

Pair = tuple[Tensor, Tensor]


class RoutedProcessor:
    """The processor of one self-attention.

    Parameters
    ----------
    original
        The diffusers processor that it stands for.
    routing : Routing
        Shared by those of a transformer.
    name : str
        Of the attention, for errors.

    Attributes
    ----------
    ran : bool
        Whether attention ran in the latest forward. Only ever written in a forward: where it were
        read, torch.compile would make one graph for each value.
    dense : bool
        Whether attention is to be dense, by the backend that the user gave this attention.
    exact : bool
        Whether its sparsity is 0 in every step, as `Routing.dense_layers` says.
    left_out : bool
        Whether the model itself left attention out in the latest forward, as some guidance does.
    """

    def __init__(self, original: Any, routing: Routing, name: str) -> None:
        self.original = original
        self.routing = routing
        self.name = name
        self.ran = False
        self.dense = False
        self.exact = False
        self.left_out = False

    # Diffusers writes and reads these two by name. They stay with the original, which is put back.

    @property
    def _attention_backend(self) -> Any:
        return getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.original._parallel_config = value

    def backend_name(self) -> str:
        """Diffusers' name of the backend that this attention would have without RainFusion."""
        backend = self._attention_backend
        return "native" if backend is None else getattr(backend, "value", backend)

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attention over the whole sequence.

        Parameters
        ----------
        query, key, value
            [B, S, N, D].
        mask
            bool, [B, 1, 1, S]: the tokens that are none of the padding at the end.

        Returns
        -------
        Tensor
            [B, S, N, D].
        """
        self.ran = True
        ulysses = Ulysses.of(self._parallel_config)
        if self.dense and ulysses is None:  # where there may be no grid
            return self._attend(query, key, value, mask=mask)
        tokens = self.routing.running_tokens()
        if not self.dense and mask is not None and not _is_length(tokens, mask):
            raise UnsupportedError(
                f"{self.name} has an attention mask of shape {tuple(mask.shape)}; RainFusion has "
                f"only lengths in the place of masks, and {self.routing.model.name} has "
                f"{'padding at the end' if tokens.padded else 'none'}: leave the mask out"
            )
        if ulysses is None:
            return self._attend(query, key, value, mask=mask)
        attend = partial(self._attend, mask=mask, heads=ulysses.own(query.shape[2]))
        return ulysses.attention(tokens, query, key, value, attend)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        heads: int | None = None,
    ) -> Tensor:
        """Attention of some of this device's `heads` over the whole sequence, on it alone."""
        if self.dense:
            return dispatch_attention_fn(
                query, key, value, attn_mask=mask, backend=self._attention_backend
            )
        return sequence_attention(
            self.routing, self.name, query, key, value, mask, exact=self.exact, heads=heads
        )

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """What this device has of a tensor over all video tokens: all, unless they are shared."""
        ulysses = Ulysses.of(self._parallel_config)
        return whole if ulysses is None else ulysses.part(whole, dim)

    def rotary(self, tables: Pair) -> Pair:
        """cos and sin [S, D] of this device's video tokens."""
        cos, sin = tables
        return self.part(cos, 0), self.part(sin, 0)


def _is_length(tokens: Tokens, mask: Tensor) -> bool:
    return tokens.padded and mask.shape[1:-1] == (1, 1)
