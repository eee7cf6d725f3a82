"""Checks the command line's request before any work and turns it into an export."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rainfusion_trt.engine.recipe import load_recipe
from rainfusion_trt.engine.recipes import shipped_recipes
from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.export.exporter import ExportReport, export_model
from rainfusion_trt.export.lora import fuse_loras
from rainfusion_trt.export.lora_file import LoraFile
from rainfusion_trt.export.own_module import export_module
from rainfusion_trt.export.source import check_has_cuts
from rainfusion_trt.export.weightless import fake_transformer
from rainfusion_trt.export.writer import check_output
from rainfusion_trt.models import VideoModel, VideoSize, get_model
from rainfusion_trt.models.noise_expert import check_expert
from rainfusion_trt.runtime.call_arguments import check_seed

logger = logging.getLogger("rainfusion_trt")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Parameters of the command line that belong to only one of the two kinds of export.
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
        "parallel",
        "device",
    )
)
_OF_MODULES = frozenset(("grid", "text", "text_tokens", "kv_len", "attentions"))


@dataclass(frozen=True)
class Job:
    """One export, ready to run.

    Attributes
    ----------
    run
        Looks at where the file will go, makes or loads the weights, which can take minutes, and
        exports. It takes the arguments of :func:`export_model` that are not about the graph.
    output
        The default file.
    """

    run: Callable[..., ExportReport]
    output: Path


def check_kind(model: str | None, module: str | None, given: Collection[str]) -> None:
    """Check for one kind of export, with none of the other kind's options in `given`."""
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
    parallel: bool = False,
) -> Job:
    """Prepare the export of a registered model."""
    model = get_model(name)
    if parallel:
        check_has_cuts(model)
    if batch is not None and batch < 1:
        raise InvalidInputError(f"--batch is {batch}: give a number from 1 on")
    component = model.component(weights.component)
    for lora in weights.loras:
        check_expert(lora.path, model.components, component)
    precision = dtype_of(model, dtype)
    size = weights.size(model, *clip)
    shape = "dynamic" if dynamic else size
    which = f"-{component}" if len(model.components) > 1 else ""

    def run(*, output: Path, **options: Any) -> ExportReport:
        check_output(output)
        if not dynamic and weights.config == "full":  # no recipe is of the tiny one
            _say_if_recipe_varies(model, size)
        transformer = weights.transformer(model, precision)
        return export_model(
            model,
            transformer,
            size,
            output=output,
            batch=batch,
            dynamic=dynamic,
            component=component,
            parallel=parallel,
            **options,
        )

    which += "-parallel" if parallel else ""
    name = f"{model.name}{which}-{shape}-{str(precision).removeprefix('torch.')}"
    return Job(run, Path(f"{name}.onnx"))


def _say_if_recipe_varies(model: VideoModel, size: VideoSize) -> None:
    """Warn of a file of one size where the model's recipe needs one of varying shapes."""
    found = shipped_recipes().get(model.name)
    if found is None:
        return
    recipe = load_recipe(found)
    if recipe.varies:
        logger.warning(
            "a file of %s alone is no file for the recipe engines/%s, which has %s: export with "
            "--dynamic for it, or build with a copy of it that has this size alone",
            size,
            found.name,
            ", ".join((*recipe.sizes, *recipe.shapes)),
        )


def module_job(name: str, *, grid: str | None, **place: Any) -> Job:
    """Prepare the export of a factory's module; `place` as in :func:`export_module`."""
    sizes = parse_grid(grid)
    factory = name.rpartition(":")[2]

    def run(*, output: Path, **options: Any) -> ExportReport:
        if factory:  # else `make_module` says what is wrong
            check_output(output)
        module, inputs = make_module(name)
        return export_module(module, inputs, grid=sizes, output=output, **place, **options)

    return Job(run, Path(f"{factory}.onnx"))


# -- models and their weights ---------------------------------------------------------------------


@dataclass(frozen=True)
class WeightRequest:
    """The source of the weights: a checkpoint, a seed, or none.

    Raises
    ------
    InvalidInputError
        There is not exactly one source, or an option does not go with it.
    """

    checkpoint: str | None
    loras: tuple[LoraFile, ...]
    random_weights: bool
    no_weights: bool
    config: Literal["full", "tiny"]
    layers: int | None
    seed: int
    device: str
    component: str | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        check_seed(self.seed)
        if self.layers is not None and self.layers < 1:
            raise InvalidInputError(f"--layers is {self.layers}: give a number from 1 on")
        given = (self.checkpoint is not None) + self.random_weights + self.no_weights
        if given == 0:
            raise InvalidInputError(
                "give the weights: --checkpoint <directory of a diffusers pipeline, hub id or file>"
                ", --random-weights for a model to test and time, or --no-weights for the graph"
            )
        if given > 1:
            raise InvalidInputError("--checkpoint, --random-weights, --no-weights: give one only")
        if self.checkpoint is not None and (self.layers is not None or self.config != "full"):
            raise InvalidInputError("--layers and --config need --random-weights or --no-weights")
        if self.loras and self.no_weights:
            raise InvalidInputError(
                "--lora adds to weights; with --no-weights there are none, and the graph is the "
                "same with and without it"
            )

    def transformer(self, model: VideoModel, dtype: torch.dtype) -> nn.Module:
        """Make the transformer with these weights and add the LoRAs."""
        transformer = self._without_loras(model, dtype)
        fuse_loras(model, transformer, self.loras)
        return transformer

    def _without_loras(self, model: VideoModel, dtype: torch.dtype) -> nn.Module:
        if self.checkpoint is not None:
            component = model.component(self.component)
            return model.load(self.checkpoint, dtype=dtype, component=component).to(self.device)
        arguments = model.config(self.config, layers=self.layers)
        if self.no_weights:
            return fake_transformer(model, arguments, dtype=dtype)
        return model.create(arguments, dtype=dtype, device=self.device, seed=self.seed)

    def size(
        self, model: VideoModel, frames: int | None, height: int | None, width: int | None
    ) -> VideoSize:
        """The requested clip, with the configuration's default for every None."""
        default = model.defaults.size if self.config == "full" else model.tiny_size
        given = {"frames": frames, "height": height, "width": width}
        return VideoSize(**{n: getattr(default, n) if v is None else v for n, v in given.items()})


def lora_files(texts: Iterable[str] | None) -> tuple[LoraFile, ...]:
    """Parse every ``FILE_OR_DIR[:SCALE]``; a missing file raises InvalidInputError."""
    return tuple(LoraFile.parse(text) for text in texts or ())


def check_device(device: str) -> None:
    """Refuse an unknown or missing device."""
    if device not in ("cpu", "cuda"):
        raise InvalidInputError(f"device {device!r} is neither cpu nor cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("device 'cuda': torch sees no GPU; use --device cpu")


def dtype_of(model: VideoModel, name: str | None) -> torch.dtype:
    """Find the dtype by its short or full name; None gives the model's own."""
    if name is None:
        return model.defaults.dtype
    for short, dtype in DTYPES.items():
        if name in (short, str(dtype).removeprefix("torch.")):
            return dtype
    raise InvalidInputError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")


# -- modules of your own ---------------------------------------------------------------------------


def make_module(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """Call the factory for the module and its example keyword arguments.

    Raises
    ------
    InvalidInputError
        The factory does not exist, fails or returns something else.
    """
    package, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*package.split("."), attribute)):
        raise InvalidInputError(
            f"--module {name!r} must be package.module:factory, a function without parameters that "
            "gives a torch module and its example keyword arguments"
        )
    with _working_directory_importable():
        try:
            found = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{package}.".startswith(f"{error.name}."):
                raise _fails(name, error) from error  # an import inside the package
            raise InvalidInputError(
                f"--module {name!r}: there is no module {error.name!r} here or on PYTHONPATH"
            ) from error
        except Exception as error:
            raise _fails(name, error) from error
        factory = getattr(found, attribute, None)
        if not callable(factory):
            raise InvalidInputError(f"--module {name!r}: {package} has no function {attribute!r}")
        try:
            made = factory()
        except Exception as error:
            raise _fails(name, error) from error
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not (is_pair and isinstance(made[0], nn.Module) and isinstance(made[1], Mapping)):
        raise InvalidInputError(
            f"--module {name!r} gives {type(made).__name__}, expected a pair: a torch module and a "
            "dictionary of example keyword arguments"
        )
    return made


def _fails(name: str, error: Exception) -> Exception:
    """Somebody's own code failed: what it says, and where. Errors of ours go on as they are."""
    if isinstance(error, RainFusionError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    return InvalidInputError(
        f"--module {name!r} failed in {place.filename}:{place.lineno} "
        f"({type(error).__name__}: {error}): correct it there"
    )


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Make the working directory importable, as ``python -m`` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def parse_grid(text: str | None) -> tuple[int, int, int] | str:
    """Parse ``T,H,W`` or the name of an argument."""
    if text and text.isidentifier():
        return text
    parts = (text or "").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        wanted = (
            "T,H,W, the token grid after patching, such as 13,30,45, or the name of an argument of "
            "that shape"
        )
        raise InvalidInputError(
            f"--grid {text!r} must be {wanted}" if text else f"--module needs --grid {wanted}"
        )
    frames, height, width = (int(part) for part in parts)
    return frames, height, width
