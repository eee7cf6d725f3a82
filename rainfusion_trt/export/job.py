"""One export as the command line asked for it: of a known model, or of a module of one's own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export.exporter import ExportReport, export_model
from rainfusion_trt.export.factory import make_module, parse_grid
from rainfusion_trt.export.own_module import export_module
from rainfusion_trt.export.request import WeightRequest, dtype_of
from rainfusion_trt.models import get_model

# Parameters of the command line that only one of the two kinds has.
_OF_MODELS = frozenset(
    (
        "checkpoint",
        "component",
        "lora",
        "random_weights",
        "no_weights",
        "config",
        "layers",
        "seed",
        "frames",
        "height",
        "width",
        "batch",
        "dtype",
        "dynamic",
        "device",
    )
)
_OF_MODULES = frozenset(("grid", "text", "text_tokens", "kv_len", "attentions"))


@dataclass(frozen=True)
class Job:
    """What is to be exported.

    Attributes
    ----------
    run
        :func:`export_model` or :func:`export_module` with what makes the graph; takes the rest.
    output
        The file where none is named.
    """

    run: Callable[..., ExportReport]
    output: Path


def check_kind(model: str | None, module: str | None, given: Collection[str]) -> None:
    """Exactly one kind of export, and of the options `given` none of the other kind."""
    if (model is None) == (module is None):
        raise InvalidInputError(
            "give one of --model NAME, a known model such as cogvideox-5b, and --module "
            "PACKAGE.MOD:FACTORY, a module of your own"
        )
    kind, foreign = ("--module", _OF_MODELS) if module else ("--model", _OF_MODULES)
    wrong = [f"--{name.replace('_', '-')}" for name in sorted(foreign.intersection(given))]
    if wrong:
        hint = "the factory decides that" if module else "the model knows that"
        raise InvalidInputError(f"{', '.join(wrong)} cannot go with {kind}: {hint}")


def model_job(
    name: str,
    weights: WeightRequest,
    clip: tuple[int | None, int | None, int | None],
    *,
    batch: int | None,
    dtype: str | None,
    dynamic: bool,
) -> Job:
    """A model of the registry; makes or loads its weights."""
    model = get_model(name)
    component = model.component(weights.component)
    precision = dtype_of(model, dtype)
    size = weights.size(model, *clip)
    shape = "dynamic" if dynamic else size
    transformer = weights.transformer(model, precision)
    which = f"-{component}" if len(model.components) > 1 else ""
    options = {"batch": batch, "dynamic": dynamic, "component": component}
    return Job(
        partial(export_model, model, transformer, size, **options),
        Path(f"{model.name}{which}-{shape}-{str(precision).removeprefix('torch.')}.onnx"),
    )


def module_job(name: str, *, grid: str | None, **place: Any) -> Job:
    """A module that a factory makes; the place of its tokens as in :func:`export_module`."""
    sizes = parse_grid(grid)
    module, inputs = make_module(name)
    return Job(
        partial(export_module, module, inputs, grid=sizes, **place),
        Path(f"{name.rpartition(':')[2]}.onnx"),
    )
