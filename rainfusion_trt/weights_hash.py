"""A hash that tells whether an exported file and a transformer in memory hold the same weights.

What is hashed: name and shape of every parameter, and of its values 16 runs of 256, evenly spread.
All of a 28 GB transformer would take minutes; this takes less than a second, and training, a fused
LoRA or another checkpoint change values everywhere. It is no proof against a change made by hand
to a few values.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import GraphAccount

_RUNS, _RUN = 16, 256
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_log = logging.getLogger(__name__)


def weights_hash(module: nn.Module) -> dict[str, str]:
    """Hash of a module's weights as they are in each dtype.

    Parameters
    ----------
    module
        A transformer, also one of torch.compile.

    Returns
    -------
    dict of str to str
        Dtype -> SHA-256 in hex. One for each, so that a file in one dtype and a module in another
        can be compared in the coarser one. Empty where weights are not there (meta tensors) or are
        quantised.
    """
    digests = {name: hashlib.sha256() for name in _DTYPES}
    named = {name.replace("_orig_mod.", ""): value for name, value in module.named_parameters()}
    for name in sorted(named):
        value = named[name].detach()
        if type(named[name]) is not nn.Parameter or value.dtype not in _DTYPES.values():
            return {}
        if value.device.type == "meta" or type(value) is not Tensor:
            return {}
        runs = _runs(value).cpu()
        for kind, digest in digests.items():
            digest.update(f"{name}{list(value.shape)}".encode())
            bits = runs.to(_DTYPES[kind]).contiguous().view(torch.uint8)
            digest.update(bits.numpy().tobytes())
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


def _runs(value: Tensor) -> Tensor:
    """Values of a tensor from runs that are evenly spread over it; all of a small one."""
    flat = value.reshape(-1)
    if flat.numel() <= _RUNS * _RUN:
        return flat
    last = flat.numel() - _RUN
    starts = [last * run // (_RUNS - 1) for run in range(_RUNS)]
    return torch.cat([flat[start : start + _RUN] for start in starts])


def adapters(module: nn.Module) -> tuple[str, ...]:
    """Names of the LoRAs and other adapters in a module, merged or not."""
    names: dict[str, Any] = dict.fromkeys(getattr(module, "peft_config", None) or {})
    for layer in module.modules():
        inner = getattr(layer, "lora_A", None)
        names |= dict.fromkeys(inner if isinstance(inner, nn.ModuleDict) else ())
    return tuple(names)


def check_weights(account: GraphAccount, module: nn.Module, origin: str) -> None:
    """Refuse an exported graph whose weights are not those of the module that it stands for.

    Parameters
    ----------
    account
        Of the exported graph.
    module
        The transformer of the pipeline.
    origin
        The graph in words.

    Raises
    ------
    InvalidInputError
        The module has adapters, or other weights.
    """
    named = adapters(module)
    remedy = "or run this transformer with backend='torch'"
    if named:
        raise InvalidInputError(
            f"the pipeline's transformer has the LoRA adapter {', '.join(map(repr, named))}, which "
            f"{origin} would ignore: call pipe.unload_lora_weights() and export with --lora, "
            f"{remedy}"
        )
    if account.loras:
        files = ", ".join(lora.file for lora in account.loras)
        _log.info(
            "%s has LoRAs in its weights (%s), the pipeline's are not compared", origin, files
        )
        return
    kinds = _comparable(account.dtype, module)
    mine = weights_hash(module) if account.weights_sha256 and kinds else {}
    if not mine:
        why = (
            "it does not tell its own, export it again"
            if not account.weights_sha256
            else "the pipeline's are offloaded, quantised or in a dtype that tells nothing"
        )
        _log.info("weights of %s and of the pipeline are not compared: %s", origin, why)
        return
    if all(mine[name] != account.weights_sha256.get(name) for name in kinds):
        raise InvalidInputError(
            f"{origin} has other weights than the pipeline's transformer (fine-tuned, fused with a "
            f"LoRA, or another checkpoint): export this transformer, {remedy}"
        )


def _comparable(exported: str | None, module: nn.Module) -> tuple[str, ...]:
    """Dtypes in which a graph's weights and a module's are equal if they are of one origin.

    The coarser of both. Of two sixteen-bit dtypes neither is, unless the weights were in one of
    them from the start; a difference proves nothing then.
    """
    names = {_name(p.dtype) for p in module.parameters()} | {exported or "float32"}
    coarse = names - {"float32"}
    if not names <= set(_DTYPES) or len(coarse) > 1:
        return ()
    return tuple(coarse or names)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
