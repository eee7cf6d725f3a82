"""``fuse_loras``: LoRA files added to a transformer's weights, for good, before it is exported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export.lora_change import Change, Full, LowRank, change_of
from rainfusion_trt.export.lora_file import Adapter, LoraFile, read_adapter
from rainfusion_trt.export.lora_names import Names, Place, known_names
from rainfusion_trt.export.module_state import check_plain
from rainfusion_trt.export.weightless import is_fake
from rainfusion_trt.graph_file import FusedLora
from rainfusion_trt.models import VideoModel

_RECORD = "_rainfusion_loras"


@typed
def fuse_loras(
    model: VideoModel, transformer: nn.Module, loras: Iterable[LoraFile | str | Path]
) -> tuple[FusedLora, ...]:
    """Add LoRA files to a transformer's weights; :func:`export_model` then names them in the file.

    Parameters
    ----------
    model
        The registry's entry the transformer belongs to; names of its original code are read for
        Wan and HunyuanVideo.
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
        A file is missing or unreadable, was fused with that scale before, belongs to another
        model, has keys or shapes this transformer has not, changes nothing, or the transformer has
        no weights or more than weights (offloading, a cache). Files before it are fused already.
    UnsupportedError
        A DoRA, or another method whose files are not read.
    """
    files = [x if isinstance(x, LoraFile) else LoraFile.parse(str(x)) for x in loras]
    if not files:
        return fused_loras(transformer)
    if is_fake(transformer):
        raise InvalidInputError(
            "a LoRA needs weights to be added to; leave out --lora for a graph without weights "
            "(--no-weights), which looks the same with and without it"
        )
    check_plain(transformer)
    names = known_names(transformer)
    hashes = _hashes(files, fused_loras(transformer))
    for file, sha256 in zip(files, hashes, strict=True):
        updates = _updates(file.path, transformer, names, read_adapter(file))
        _fuse(file, transformer, updates)
        layers = len({update.place.owner for update in updates})
        fused = FusedLora(file.path.name, file.scale, sha256, layers)
        setattr(transformer, _RECORD, (*fused_loras(transformer), fused))
    return fused_loras(transformer)


def fused_loras(transformer: nn.Module) -> tuple[FusedLora, ...]:
    """What :func:`fuse_loras` put into this transformer."""
    return getattr(transformer, _RECORD, ())


def _hashes(files: Sequence[LoraFile], before: Sequence[FusedLora]) -> list[str]:
    """Of all files, none of which is fused with the same scale twice.

    As by a cell of a notebook that is run again; another scale adds to, or takes back, the first.
    """
    known = {(lora.sha256, lora.scale) for lora in before}
    hashes = []
    for file in files:
        sha256 = file.sha256()
        if (sha256, file.scale) in known:
            raise InvalidInputError(
                f"LoRA {file.path} with scale {file.scale:g} is given twice or fused already, so "
                f"that it would count twice: give it once (with {2 * file.scale:g} if that is "
                "meant), to weights without it"
            )
        known.add((sha256, file.scale))
        hashes.append(sha256)
    return hashes


@dataclass(frozen=True)
class _Update:
    """What a layer of the file adds to part of one parameter."""

    layer: str
    parameter: str
    place: Place
    change: Change


def _updates(path: Path, transformer: nn.Module, names: Names, adapter: Adapter) -> list[_Update]:
    """Everything a LoRA changes; every one of its tensors has its place."""
    kind = type(transformer).__name__
    unexpected = [
        key
        for layer, parts in adapter.keys.items()
        for part, key in parts.items()
        if layer not in names or not part
    ]
    count = sum(map(len, adapter.keys.values()))
    if len(unexpected) == count:
        some = f"its keys are like {_bare(adapter)!r}" if unexpected else "it is empty"
        raise InvalidInputError(
            f"LoRA {path} matches no layer of {kind} ({some}); its names are neither of this model "
            "in diffusers, nor of its original code as far as that is known: choose the model it "
            "was trained for, or convert its names to diffusers'"
        )
    if unexpected:
        some = ", ".join(unexpected[:3]) + (", ..." if len(unexpected) > 3 else "")
        raise InvalidInputError(
            f"LoRA {path} has {len(unexpected)} of {count} keys that fit no layer of {kind}: "
            f"{some}; choose the model it was trained for, or take them out of the file if they "
            "are not meant for it"
        )
    parameters = dict(transformer.named_parameters())
    updates: list[_Update] = []
    for layer, tensors in adapter.layers.items():
        for part, tensor in tensors.items():
            if tensor.numel() == 0 and part != "alpha":
                raise InvalidInputError(
                    f"LoRA {path}: {adapter.keys[layer][part]} of shape {list(tensor.shape)} has "
                    "no values; the file is damaged"
                )
            if not tensor.isfinite().all():
                raise InvalidInputError(
                    f"LoRA {path}: {adapter.keys[layer][part]} has values that are not finite"
                )
        try:
            found = _layer_updates(layer, tensors, names[layer], parameters, adapter)
        except InvalidInputError as error:
            raise InvalidInputError(f"LoRA {path}: {error}") from error
        updates.extend(found)
    _check_once(path, updates, parameters, adapter)
    return updates


def _check_once(
    path: Path, updates: list[_Update], parameters: dict[str, nn.Parameter], adapter: Adapter
) -> None:
    """Refuse two layers of a file that are one place here, by two of its names."""
    taken: dict[str, list[tuple[int, int, str]]] = {}
    for update in updates:
        begin, end, _ = update.place.target.indices(parameters[update.parameter].shape[0])
        others = taken.setdefault(update.parameter, [])
        for other_begin, other_end, other in others:
            if other != update.layer and begin < other_end and other_begin < end:
                keys = [next(iter(adapter.keys[layer].values())) for layer in (other, update.layer)]
                raise InvalidInputError(
                    f"LoRA {path} changes {update.parameter} twice, by {' and '.join(keys)}; keep "
                    "one of the two names in it"
                )
        others.append((begin, end, update.layer))


def _bare(adapter: Adapter) -> str:
    """The first key without its prefix."""
    layer, parts = next(iter(adapter.keys.items()))
    key = next(iter(parts.values()))
    start = key.find(layer)
    return key[start:] if start > 0 else key


def _layer_updates(
    layer: str,
    tensors: dict[str, Tensor],
    places: tuple[Place, ...],
    parameters: dict[str, nn.Parameter],
    adapter: Adapter,
) -> list[_Update]:
    down = tensors.get("A.weight")
    rank = down.shape[0] if down is not None and down.dim() else 1
    change = change_of(layer, tensors, adapter.scale(places[0].owner, rank))
    if change is None and not tensors.keys() & {"diff_b"}:
        given = ", ".join(adapter.keys[layer].values())
        raise InvalidInputError(f"{given} belongs to no change of {layer}: incomplete")
    updates = []
    if change is not None:
        updates += _placed(layer, change, places, parameters, "weight")
    if "diff_b" in tensors:
        updates += _placed(layer, Full(tensors["diff_b"]), places, parameters, "bias")
    if "B.bias" in tensors:
        scale = change.scale if isinstance(change, LowRank) else 1.0
        bias = Full(tensors["B.bias"].float() * scale)
        updates += _placed(layer, bias, places, parameters, "bias")
    return updates


def _placed(
    layer: str,
    change: Change,
    places: tuple[Place, ...],
    parameters: dict[str, nn.Parameter],
    kind: str,
) -> list[_Update]:
    """A change of the file's layer as changes of the parameters that it is here."""
    named = [
        (f"{place.owner}.{kind}" if f"{place.owner}.{kind}" in parameters else place.owner, place)
        for place in places
    ]
    missing = [name for name, _ in named if name not in parameters]
    if missing:
        raise InvalidInputError(f"it changes the {kind} of {layer}, which has none here")
    first = parameters[named[0][0]]
    ends = [place.source.stop for place in places]
    rows = max(ends) if None not in ends else first.shape[0]
    expected = (rows, *first.shape[1:])
    if change.shape != expected:
        if isinstance(change, LowRank):
            shapes = f"lora_A and lora_B are {list(change.down.shape)} and {list(change.up.shape)}"
            what = f"{layer}.{shapes}, which do"
        else:
            what = f"{layer} is changed by values of shape {list(change.shape)}, which do"
        raise InvalidInputError(
            f"{what} not fit a {kind} of {list(expected)}; it was trained for a model of another "
            "size"
        )
    return [_Update(layer, name, place, change) for name, place in named]


def _fuse(file: LoraFile, transformer: nn.Module, updates: list[_Update]) -> None:
    """In float32, rounded once to the parameter's own type."""
    parameters = dict(transformer.named_parameters())
    changed = False
    # Weights that were made under inference_mode are written under it.
    made_in_it = any(parameters[update.parameter].is_inference() for update in updates)
    with torch.inference_mode(made_in_it), torch.no_grad():
        for update in updates:
            part = parameters[update.parameter][update.place.target]
            added = file.scale * update.change.rows(update.place.source).to(part.device)
            result = (part.float() + added).to(part.dtype)
            if not result.isfinite().all():
                raise InvalidInputError(
                    f"LoRA {file.path} with scale {file.scale:g} makes {update.parameter} not "
                    f"finite in {str(part.dtype).removeprefix('torch.')}; load the transformer "
                    "again, which is changed in part"
                )
            changed = changed or not torch.equal(part, result)
            part.copy_(result)
    if not changed:
        raise InvalidInputError(
            f"LoRA {file.path} with scale {file.scale:g} changes no weight: its factors or its "
            "alpha are 0, or too small to count in the transformer's type; leave it out"
        )
