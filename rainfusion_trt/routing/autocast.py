"""The operator under ``torch.autocast``, which knows PyTorch's own attention and not ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Devices of the operator that have autocast. Found out here, because torch.compile cannot trace the
# question in PyTorch 2.9 to 2.12.
_KINDS = frozenset(kind for kind in ("cpu", "cuda") if torch.amp.is_autocast_available(kind))


def under_autocast(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Call `attend` as autocast calls ``F.scaled_dot_product_attention``.

    Queries and keys often leave a norm in float32 while values are of 16 bits: all three get
    autocast's type, float64 excepted.
    """
    kind = query.device.type
    if kind not in _KINDS or not torch.is_autocast_enabled(kind):
        return attend(query, key, value)
    dtype = torch.get_autocast_dtype(kind)
    query, key, value = (
        x if x.dtype == torch.float64 else x.to(dtype) for x in (query, key, value)
    )
    return attend(query, key, value)
