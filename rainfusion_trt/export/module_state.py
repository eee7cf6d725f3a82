"""What a transformer carries that a graph cannot: refused before an export, in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export.weightless import is_fake
from rainfusion_trt.models.checkpoint_checks import named
from rainfusion_trt.routing import routing_of

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# diffusers' hooks by their names, and how each is turned off. Caches come first: they may run
# together with others, and `disable_cache` is the simplest to do.
_LOAD_AGAIN = "load it again without it"
_HOOKS = (
    ("layerwise_casting", "layerwise casting", f"enable_layerwise_casting cannot be undone, so "
     f"{_LOAD_AGAIN}"),
    ("group_offloading", "group offloading", f"enable_group_offload cannot be undone, so "
     f"{_LOAD_AGAIN}"),
    ("layer_execution_tracker", "group offloading", _LOAD_AGAIN),
    ("cp_", "context parallelism", _LOAD_AGAIN),
    ("tensor_parallel", "tensor parallelism", _LOAD_AGAIN),
)  # fmt: skip


def refuse_unfused(transformer: nn.Module) -> None:
    """Raise InvalidInputError if adapters are loaded but are not part of the weights."""
    adapters = getattr(transformer, "peft_config", None)
    if adapters:
        raise InvalidInputError(
            f"the transformer has loaded adapters ({', '.join(adapters)}); call "
            "transformer.unload_lora() and give the files to rainfusion_trt.export.fuse_loras "
            "(--lora)"
        )


def check_plain(module: nn.Module) -> None:
    """Refuse a module that is not just its own layers with floating-point weights.

    Raises
    ------
    InvalidInputError
        RainFusion, a cache, offloading or another hook is on, adapters are loaded, or weights are
        missing; the message says what to turn off.
    UnsupportedError
        Its weights are quantised.
    """
    kind = type(module).__name__
    refuse_unfused(module)
    _refuse_routing(module, kind)
    if getattr(module, "is_cache_enabled", False):
        raise InvalidInputError(
            f"{kind} has a cache on ({type(module._cache_config).__name__}), which no graph can "
            "hold: call .disable_cache() first"
        )
    _refuse_offloading(module, kind)
    _refuse_hooks(module, kind)
    if getattr(module, "_parallel_config", None) is not None:
        raise InvalidInputError(
            f"{kind} has parallelism enabled: load it again without enable_parallelism"
        )
    _refuse_quantised(module, kind)


def check_finite(module: nn.Module) -> None:
    """Raise InvalidInputError for weights with NaN or infinite values, naming the first."""
    if is_fake(module):
        return
    bad = [name for name, tensor in module.named_parameters() if not _is_finite(tensor)]
    bad += [name for name, tensor in module.named_buffers() if not _is_finite(tensor)]
    if bad:
        dtype = str(dict([*module.named_parameters(), *module.named_buffers()])[bad[0]].dtype)
        raise InvalidInputError(
            f"{type(module).__name__} has values that are not finite in {named(bad)} "
            f"({dtype.removeprefix('torch.')}): the checkpoint is damaged, or its values are too "
            "large for this element type"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # One pass without a copy; NaN goes through both.
    least, most = torch.aminmax(tensor.detach())
    return bool(least.isfinite() & most.isfinite())


def _refuse_routing(module: nn.Module, kind: str) -> None:
    if routing_of(module) is not None:
        raise InvalidInputError(
            f"RainFusion is on for this {kind}: call rainfusion_trt.disable() first, the export "
            "puts the operator in by itself"
        )


def _refuse_offloading(module: nn.Module, kind: str) -> None:
    """Hooks of accelerate: on the whole (model offload) or on its parts (sequential offload)."""
    hooked = [name for name, part in module.named_modules() if hasattr(part, "_hf_hook")]
    if hooked:
        raise InvalidInputError(
            f"{kind} is offloaded by accelerate: call pipe.remove_all_hooks(), or "
            "accelerate.hooks.remove_hook_from_module(transformer, recurse=True), first"
        )
    empty = [name for name, p in module.named_parameters() if p.device.type == "meta"]
    if empty:
        raise InvalidInputError(
            f"{kind} has no values for {named(empty)} (they are on the meta device): load its "
            "weights first"
        )


def _refuse_hooks(module: nn.Module, kind: str) -> None:
    for hook in _hook_names(module):
        for start, what, remedy in _HOOKS:
            if hook.startswith(start):
                raise InvalidInputError(f"{kind} has {what} on, which no graph can hold: {remedy}")
        raise InvalidInputError(
            f"{kind} has the diffusers hook {hook!r} on, which no graph can hold: remove it with "
            f"HookRegistry.check_if_exists_or_initialize(module).remove_hook({hook!r}, "
            "recurse=True)"
        )


def _hook_names(module: nn.Module) -> Iterator[str]:
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if registry is not None:
            yield from registry.hooks


def _refuse_quantised(module: nn.Module, kind: str) -> None:
    quantiser = getattr(module, "hf_quantizer", None)
    if quantiser is not None or getattr(module, "is_quantized", False):
        method = getattr(getattr(quantiser, "quantization_config", None), "quant_method", None)
        by = f" with {getattr(method, 'value', method)}" if method else ""
        raise UnsupportedError(f"{kind} is quantised{by}: {_UNQUANTISED}")
    strange = list(_not_floats(module.named_parameters()))
    if strange:
        parameter = dict(module.named_parameters())[strange[0]]
        what = _described(parameter)
        raise UnsupportedError(
            f"{kind} has weights that are no plain floating-point tensors, {named(strange)} "
            f"({what}): {_UNQUANTISED}"
        )


_UNQUANTISED = "export a transformer with the 16- or 32-bit weights that it was made from"


def _not_floats(parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[str]:
    from torch._subclasses.fake_tensor import FakeTensor

    for name, parameter in parameters:
        plain = type(parameter.data) in (torch.Tensor, FakeTensor)
        subclass = type(parameter) not in (nn.Parameter, torch.Tensor, FakeTensor)
        if parameter.dtype not in _FLOATS or not plain or subclass:
            yield name


def _described(parameter: nn.Parameter) -> str:
    dtype = str(parameter.dtype).removeprefix("torch.")
    inner, outer = type(parameter.data).__name__, type(parameter).__name__
    return dtype if inner == "Tensor" and outer == "Parameter" else f"{dtype}, {inner}, {outer}"
