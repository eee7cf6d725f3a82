"""Builds an engine folder from an ONNX file, a plugin library and a recipe."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rainfusion_trt.argument_types import typed
from rainfusion_trt.engine.fingerprint import combined_sha256, digest, record_files
from rainfusion_trt.engine.flavour import TensorRTFlavour
from rainfusion_trt.engine.folder import check_replaceable, existing_engine, write_engine
from rainfusion_trt.engine.messages import BuildRequest
from rainfusion_trt.engine.metadata import (
    ENGINE_FILE,
    EngineMetadata,
    FileRecord,
    PluginRecord,
)
from rainfusion_trt.engine.onnx_file import OnnxFile, read_for_build
from rainfusion_trt.engine.recipe import EngineRecipe, load_recipe, with_gpus
from rainfusion_trt.engine.shapes import Shapes, gpus_of, resolve_profiles
from rainfusion_trt.engine.target import (
    check_graph,
    check_kernels,
    choose_flavour,
    choose_targets,
    native_device,
)
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files.staging import staging
from rainfusion_trt.hashing import file_sha256
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.native import NativeLibrary, load_library

_log = logging.getLogger(__name__)


@typed
def build_engine(
    onnx: str | Path,
    *,
    recipe: EngineRecipe | str | Path | None = None,
    plugin: str | Path | None = None,
    output: str | Path | None = None,
    target: str | list[str] | tuple[str, ...] | None = None,
    flavour: str | None = None,
    force: bool = False,
    progress: bool = True,
    gpus: str | int | None = None,
    profile: EngineRecipe | str | Path | None = None,
) -> Path:
    """Build an engine, unless the folder already holds it.

    Parameters
    ----------
    onnx : path
        Model written by ``rainfusion-trt export``.
    recipe : EngineRecipe or path
        The recipe, a YAML file such as those under ``engines/``, or the name of one of these.
    plugin : path, optional
        Plugin library; by default the one that `rainfusion_trt.plugin.build.find_library` finds.
    output : path, optional
        Folder to write, by default ``MODEL.engine`` beside ``MODEL.onnx``.
    target : str or list of str, optional
        Instead of the recipe's: ``"native"``, or compute capabilities such as ``["sm80"]``.
    flavour : str, optional
        ``"tensorrt"`` or ``"tensorrt_rtx"``; by default what is importable, and for named compute
        capabilities TensorRT for RTX, which alone can build for a GPU that is not there.
    force : bool
        Build even if nothing that matters has changed.
    progress : bool
        Show progress on a terminal.
    gpus : int or str, optional
        Instead of the recipe's: how many GPUs share a clip, such as 4 or ``"2-8"``.
    profile : EngineRecipe or path, optional
        The recipe, by the argument's name of 0.1; warns.

    Returns
    -------
    Path
        Folder with engine.plan and metadata.json.

    Raises
    ------
    InvalidInputError, UnsupportedError
        Recipe, model or target do not fit; nothing was built.
    BackendUnavailableError, LibraryNotFoundError
        TensorRT, a GPU for a native build, or the plugin library is missing.
    EngineBuildError
        TensorRT failed; the message carries its last words.
    """
    onnx = Path(onnx)
    folder = Path(output) if output is not None else Path(f"{onnx.parent / onnx.stem}.engine")
    previous = existing_engine(folder)
    chosen = with_gpus(_one_recipe(recipe, profile), gpus)
    build = _checked(onnx, chosen, plugin, target, flavour)
    sources = _sources(build, previous)
    if _is_current(folder, previous, sources, force=force):
        return folder
    check_replaceable(folder)
    with staging(folder) as stage:
        if _is_current(folder, existing_engine(folder), sources, force=force):
            return folder  # another process has built it meanwhile
        _log.info("building %s with %s for %s", folder, build.tensorrt, ", ".join(build.place))
        return write_engine(stage, _request(build, folder), _facts(build, sources), progress)


def _is_current(
    folder: Path, found: EngineMetadata | None, sources: _Sources, *, force: bool
) -> bool:
    if force or found is None or found.key != sources.key:
        return False
    _log.info("%s is up to date", folder)
    return True


def _one_recipe(
    recipe: EngineRecipe | str | Path | None, profile: EngineRecipe | str | Path | None
) -> EngineRecipe:
    """The recipe under the argument's present name or the one of 0.1."""
    if profile is not None:
        if recipe is not None:
            raise InvalidInputError("recipe and profile are one argument: give recipe only")
        message = "build_engine(profile=...) is now recipe=..."
        warnings.warn(message, FutureWarning, stacklevel=4)  # of who calls `build_engine`
        recipe = profile
    if recipe is None:
        raise InvalidInputError("recipe is missing: give a YAML file, or a name: cogvideox-5b")
    return recipe if isinstance(recipe, EngineRecipe) else load_recipe(recipe)


@dataclass(frozen=True)
class _Build:
    """The parts that an engine is built from, checked to fit together."""

    recipe: EngineRecipe
    file: OnnxFile
    shapes: dict[str, Shapes]
    targets: tuple[str, ...] | None  # None for the GPU of this machine
    capabilities: tuple[str, ...]  # the targets, or the one of this machine's GPU
    gpu: str | None  # its name; None with targets
    library: NativeLibrary
    tensorrt: TensorRTFlavour

    @property
    def place(self) -> tuple[str, ...]:
        """The engine's hardware: named targets, or capability and name of this machine's GPU."""
        return self.capabilities if self.gpu is None else (*self.capabilities, self.gpu)


@dataclass(frozen=True)
class _Sources:
    """A build's inputs: the files by content, and one hash over everything."""

    onnx_files: tuple[FileRecord, ...]
    plugin: PluginRecord
    key: str


def _checked(
    onnx: str | Path,
    recipe: EngineRecipe,
    plugin: str | Path | None,
    target: str | list[str] | tuple[str, ...] | None,
    flavour: str | None,
) -> _Build:
    """Read and check everything before a folder is touched."""
    file = read_for_build(onnx)
    library = load_library(plugin)
    check_graph(library, file)
    _check_recipe(recipe, file)
    shapes = resolve_profiles(recipe, file)
    targets = choose_targets(recipe.target if target is None else target)
    tensorrt = choose_flavour(flavour, targets)
    gpu = None
    capabilities = targets
    if capabilities is None:
        capability, gpu = native_device()
        capabilities = (capability,)
    check_kernels(library, capabilities, eight_bit=file.eight_bit)
    return _Build(recipe, file, shapes, targets, capabilities, gpu, library, tensorrt)


def _sources(build: _Build, previous: EngineMetadata | None) -> _Sources:
    file, library, tensorrt = build.file, build.library, build.tensorrt
    names = (file.path.name, *file.data_files)
    records = record_files(file.path.parent, names, previous.onnx_files if previous else ())
    file.check_sha256({record.name: record.sha256 for record in records})
    plugin = PluginRecord(
        file=library.path.name, sha256=file_sha256(library.path), build=library.build_info
    )
    profiles = {
        name: {tensor: shape.model_dump() for tensor, shape in shapes.items()}
        for name, shapes in build.shapes.items()
    }
    key = digest(
        {
            "onnx": combined_sha256(records),
            "plugin": plugin.sha256,
            "tensorrt": [tensorrt.name, tensorrt.version],
            "targets": build.place,
            "profiles": profiles,
            "builder": build.recipe.builder.model_dump(),
        }
    )
    return _Sources(records, plugin, key)


def _request(build: _Build, folder: Path) -> BuildRequest:
    return BuildRequest(
        onnx=build.file.path.resolve(),
        plugin=build.library.path.resolve(),
        plan=folder / ENGINE_FILE,
        flavour=build.tensorrt.name,
        targets=build.targets,
        profiles=build.shapes,
        builder=build.recipe.builder,
        attention_nodes=build.file.attention_nodes,
        token_nodes=build.file.token_nodes,
    )


def _facts(build: _Build, sources: _Sources) -> dict[str, Any]:
    """The part of the metadata that is known before the engine is built."""
    file, recipe = build.file, build.recipe
    account = file.account
    return {
        "model": account.model or recipe.model,
        "component": account.component,
        "config": account.config,
        "size": account.size,
        "settings": account.settings,
        "loras": account.loras,
        "weights_sha256": account.weights_sha256,
        "gpus": gpus_of(recipe, file),
        "precision": file.precision or recipe.precision,
        "flavour": build.tensorrt.name,
        "version": build.tensorrt.version,
        "targets": build.capabilities,
        "device": build.gpu,
        "profiles": tuple(build.shapes),
        "builder": recipe.builder,
        "plugin": sources.plugin,
        "onnx": file.path.name,
        "onnx_sha256": combined_sha256(sources.onnx_files),
        "onnx_files": sources.onnx_files,
        "key": sources.key,
    }


def _check_recipe(recipe: EngineRecipe, file: OnnxFile) -> None:
    model = file.account.model
    if recipe.model is not None:
        expected = get_model(recipe.model).name
        if model is not None and model != expected:
            raise InvalidInputError(
                f"{file.path} holds {model}, the engine recipe is for {expected}: use the "
                "recipe of that model"
            )
    if file.precision is not None and file.precision != recipe.precision:
        raise InvalidInputError(
            f"{file.path} was exported in {file.precision}, the engine recipe says "
            f"precision: {recipe.precision}; change the recipe or export with "
            f"--dtype {'bf16' if recipe.precision == 'bfloat16' else 'fp16'}"
        )
