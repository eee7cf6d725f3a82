"""``fuse_loras``: LoRA files added to a transformer's weights, for good, before it is exported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export.lora_file import LoraFile, read_adapter
from rainfusion_trt.export.weightless import is_fake
from rainfusion_trt.graph_file import FusedLora
from rainfusion_trt.models import VideoModel

_RECORD = "_rainfusion_loras"
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<kind>weight|bias)")
_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def fuse_loras(
    model: VideoModel, transformer: nn.Module, loras: Iterable[LoraFile | str | Path]
) -> tuple[FusedLora, ...]:
    """Add LoRA files to a transformer's weights; :func:`export_model` then names them in the file.

    Parameters
    ----------
    model
        The registry's entry the transformer belongs to.
    transformer
        With weights. It is changed, and has its own layers again afterwards.
    loras
        Files or folders, ``path`` or ``path:scale``, fused in this order.

    Returns
    -------
    tuple of FusedLora
        All that were fused into this transformer, earlier ones included.

    Raises
    ------
    InvalidInputError
        A file is missing or unreadable, belongs to another model, has keys or shapes this
        transformer has not, or the transformer has no weights. Files before it are fused already.
    UnsupportedError
        A DoRA, or the `peft` package is missing or too old.
    """
    files = [x if isinstance(x, LoraFile) else LoraFile.parse(str(x)) for x in loras]
    if not files:
        return fused_loras(transformer)
    if is_fake(transformer):
        raise InvalidInputError(
            "a LoRA needs weights to be added to; leave out --lora for a graph without weights "
            "(--no-weights), which looks the same with and without it"
        )
    _check_peft()
    refuse_unfused(transformer)
    for file in files:
        state, metadata = read_adapter(file, model)
        layers = _check_fit(file.path, transformer, state)
        _fuse(file, transformer, state, metadata)
        fused = FusedLora(file.path.name, file.scale, file.sha256(), layers)
        setattr(transformer, _RECORD, (*fused_loras(transformer), fused))
    return fused_loras(transformer)


def fused_loras(transformer: nn.Module) -> tuple[FusedLora, ...]:
    """What :func:`fuse_loras` put into this transformer."""
    return getattr(transformer, _RECORD, ())


def refuse_unfused(transformer: nn.Module) -> None:
    """Raise InvalidInputError if adapters are loaded but are not part of the weights."""
    adapters = getattr(transformer, "peft_config", None)
    if adapters:
        raise InvalidInputError(
            f"the transformer has loaded adapters ({', '.join(adapters)}); call "
            "transformer.unload_lora() and give the files to rainfusion_trt.export.fuse_loras "
            "(--lora)"
        )


def _check_peft() -> None:
    from diffusers.utils import USE_PEFT_BACKEND

    if not USE_PEFT_BACKEND:
        raise UnsupportedError(
            "diffusers reads LoRA files with the `peft` package, which is missing or too old: "
            "pip install -U peft"
        )


def _check_fit(path: Path, transformer: nn.Module, state: dict[str, Tensor]) -> int:
    """The number of layers a LoRA changes; every tensor must have its place."""
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, _LAYERS)}
    found: dict[str, dict[str, Tensor]] = {}
    unexpected = []
    for name, tensor in state.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["module"] not in layers:
            unexpected.append(name)
        else:
            found.setdefault(match["module"], {})[f"{match['side']}.{match['kind']}"] = tensor
    kind = type(transformer).__name__
    if not found:
        some = f"its keys are like {unexpected[0]!r}" if unexpected else "it is empty"
        raise InvalidInputError(
            f"LoRA {path} matches no layer of {kind} ({some}); choose the model it was trained for"
        )
    if unexpected:
        some = ", ".join(unexpected[:3]) + (", ..." if len(unexpected) > 3 else "")
        raise InvalidInputError(
            f"LoRA {path} has {len(unexpected)} of {len(state)} keys that fit no layer of {kind}: "
            f"{some}; choose the model it was trained for, or take them out of the file if they "
            "are not meant for it"
        )
    for name, tensors in found.items():
        _check_layer(path, name, layers[name].weight, tensors)
    return len(found)


def _check_layer(path: Path, name: str, weight: Tensor, tensors: dict[str, Tensor]) -> None:
    """[rank, in, ...] and [out, rank, ...] for a weight of [out, in, ...]."""
    for side in ("A", "B"):
        if f"{side}.weight" not in tensors:
            raise InvalidInputError(f"LoRA {path} has no {name}.lora_{side}.weight: incomplete")
    down, up = tensors["A.weight"], tensors["B.weight"]
    fits = (
        down.dim() == up.dim() == weight.dim()
        and down.shape[1:] == weight.shape[1:]
        and up.shape[0] == weight.shape[0]
    )
    if not fits:
        raise InvalidInputError(
            f"LoRA {path}: {name}.lora_A and lora_B are {list(down.shape)} and {list(up.shape)}, "
            f"which do not fit a weight of {list(weight.shape)}; it was trained for a model of "
            "another size"
        )
    if down.shape[0] != up.shape[1]:
        raise InvalidInputError(
            f"LoRA {path}: {name}.lora_A has rank {down.shape[0]} and lora_B rank {up.shape[1]}; "
            "the file is damaged"
        )
    for key in ("A.weight", "B.weight"):
        if not tensors[key].isfinite().all():
            raise InvalidInputError(
                f"LoRA {path}: {name}.lora_{key} has values that are not finite"
            )


def _fuse(
    file: LoraFile, transformer: nn.Module, state: dict[str, Tensor], metadata: dict | None
) -> None:
    with _taking_adapters(transformer):
        try:
            transformer.load_lora_adapter(
                state, prefix=None, adapter_name="export", metadata=metadata
            )
            transformer.fuse_lora(lora_scale=file.scale, safe_fusing=True)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidInputError(f"LoRA {file.path} could not be fused: {error}") from error
        finally:
            transformer.unload_lora()


@contextmanager
def _taking_adapters(transformer: nn.Module) -> Iterator[None]:
    """Diffusers' adapter methods, also for a class it did not give them to (Allegro's)."""
    from diffusers.loaders import PeftAdapterMixin

    kind = type(transformer)
    if not issubclass(kind, PeftAdapterMixin):
        transformer.__class__ = type(kind.__name__, (PeftAdapterMixin, kind), {})
    try:
        yield
    finally:
        transformer.__class__ = kind
