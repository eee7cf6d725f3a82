"""Builds an engine folder from an ONNX file, a plugin library and a recipe."""

from __future__ import annotations

import datetime
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.engine.fingerprint import combined_sha256, digest, record_files
from rainfusion_trt.engine.flavour import TensorRTFlavour, available_flavours, load_tensorrt
from rainfusion_trt.engine.messages import BuildRequest, Built
from rainfusion_trt.engine.metadata import (
    ENGINE_FILE,
    METADATA_FILE,
    EngineMetadata,
    PluginRecord,
    file_sha256,
    load_metadata,
    save_metadata,
)
from rainfusion_trt.engine.onnx_file import OnnxFile, read_onnx
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.profile import EngineProfile, check_targets, load_profile
from rainfusion_trt.engine.progress import BuildProgress
from rainfusion_trt.engine.shapes import resolve_profiles
from rainfusion_trt.errors import (
    BackendUnavailableError,
    EngineLoadError,
    InvalidInputError,
    UnsupportedError,
)
from rainfusion_trt.models import get_model
from rainfusion_trt.native import NativeLibrary, load_library

_log = logging.getLogger(__name__)


def build_engine(
    onnx: str | Path,
    *,
    profile: EngineProfile | str | Path,
    plugin: str | Path | None = None,
    output: str | Path | None = None,
    target: str | list[str] | tuple[str, ...] | None = None,
    flavour: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Build an engine, unless the folder already holds it.

    Parameters
    ----------
    onnx : path
        Model written by ``export/to_onnx.py``.
    profile : EngineProfile or path
        Recipe, or a YAML file such as those under ``engines/``.
    plugin : path, optional
        Plugin library; by default the one that `rainfusion_trt.build_plugin.find_library` finds.
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
    recipe = profile if isinstance(profile, EngineProfile) else load_profile(profile)
    file = read_onnx(onnx)
    _check_recipe(recipe, file)
    shapes = resolve_profiles(recipe, file)
    targets = _targets(recipe, target)
    library = load_library(plugin)
    tensorrt = _load_flavour(flavour, targets)
    device = _native_device() if targets is None else None
    _check_kernels(library, targets or (device[0],))
    folder = Path(output) if output is not None else file.path.with_suffix(".engine")
    previous = _existing(folder)

    names = (file.path.name, *file.data_files)
    records = record_files(file.path.parent, names, previous.onnx_files if previous else ())
    plugin_record = PluginRecord(
        file=library.path.name, sha256=file_sha256(library.path), build=library.build_info
    )
    key = digest(
        {
            "onnx": combined_sha256(records),
            "plugin": plugin_record.sha256,
            "tensorrt": [tensorrt.name, tensorrt.version],
            "targets": targets or device,
            "profiles": {n: {i: s.model_dump() for i, s in p.items()} for n, p in shapes.items()},
            "builder": recipe.builder.model_dump(),
        }
    )
    if previous is not None and previous.key == key and not force:
        _log.info("%s is up to date", folder)
        return folder
    _log.info("building %s with %s for %s", folder, tensorrt, ", ".join(targets or device or ()))
    request = BuildRequest(
        onnx=file.path.resolve(),
        plugin=library.path.resolve(),
        plan=folder / ENGINE_FILE,
        flavour=tensorrt.name,
        targets=targets,
        profiles=shapes,
        builder=recipe.builder,
        attention_nodes=file.attention_nodes,
    )
    facts = {
        **_model_facts(file, recipe),
        "flavour": tensorrt.name,
        "version": tensorrt.version,
        "targets": targets or (device[0],),
        "device": device[1] if device else None,
        "profiles": tuple(shapes),
        "builder": recipe.builder,
        "plugin": plugin_record,
        "onnx": file.path.name,
        "onnx_sha256": combined_sha256(records),
        "onnx_files": records,
        "key": key,
    }
    return _build_into(folder, request, facts, progress)


def _build_into(folder: Path, request: BuildRequest, facts: dict[str, Any], progress: bool) -> Path:
    """Build in a temporary folder beside `folder` and put it in its place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        request = request.model_copy(update={"plan": (fresh / ENGINE_FILE).resolve()})
        started = time.monotonic()
        with BuildProgress(progress) as display:
            built = run_worker(request, display)
        seconds = time.monotonic() - started
        save_metadata(fresh, _metadata(built, facts, seconds))
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)
    _log.info(
        "%s: %.1f MB, %d plugin layers, %.1f s",
        *(folder, built.engine_size / 1e6, built.plugin_layers, seconds),
    )
    return folder


def _metadata(built: Built, facts: dict[str, Any], seconds: float) -> EngineMetadata:
    return EngineMetadata(
        **facts,
        inputs=built.inputs,
        outputs=built.outputs,
        plugin_layers=built.plugin_layers,
        engine_size=built.engine_size,
        engine_sha256=built.engine_sha256,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(seconds, 3),
        command=" ".join(sys.argv),
    )


def _model_facts(file: OnnxFile, recipe: EngineProfile) -> dict[str, Any]:
    return {
        "model": file.model or recipe.model,
        "config": file.json_property("config"),
        "size": file.properties.get("size"),
        "settings": file.json_property("settings"),
        "precision": file.precision or recipe.precision,
    }


def _check_recipe(recipe: EngineProfile, file: OnnxFile) -> None:
    if recipe.model is not None:
        expected = get_model(recipe.model).name
        if file.model is not None and file.model != expected:
            raise InvalidInputError(
                f"{file.path} holds {file.model}, the engine profile is for {expected}: use the "
                "profile of that model"
            )
    if file.precision is not None and file.precision != recipe.precision:
        raise InvalidInputError(
            f"{file.path} was exported in {file.precision}, the engine profile says "
            f"precision: {recipe.precision}; change the profile or export with "
            f"--dtype {'bf16' if recipe.precision == 'bfloat16' else 'fp16'}"
        )


def _targets(
    recipe: EngineProfile, target: str | list[str] | tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Named compute capabilities, or None for the GPU of this machine."""
    chosen = recipe.target if target is None else target
    names = [chosen] if isinstance(chosen, str) else chosen
    names = tuple(part.strip() for name in names for part in name.split(","))
    if names == ("native",):
        return None
    try:
        check_targets(names)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    return names


def _load_flavour(flavour: str | None, targets: tuple[str, ...] | None) -> TensorRTFlavour:
    if flavour is None and targets is not None and "tensorrt_rtx" in available_flavours():
        flavour = "tensorrt_rtx"
    tensorrt = load_tensorrt(flavour)
    if tensorrt.name == "tensorrt" and targets is not None:
        raise InvalidInputError(
            f"{tensorrt} builds for the GPU of this machine only, not for {', '.join(targets)}: "
            "use target native on the machine that will run the engine, or install "
            "TensorRT for RTX"
        )
    return tensorrt


def _native_device() -> tuple[str, str]:
    """Compute capability and name of the GPU that a native engine is built for."""
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "target native needs an NVIDIA GPU and a CUDA build of torch, and torch sees none; to "
            "build for another machine name its compute capability, for example --target sm89 "
            "(TensorRT for RTX)"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}", torch.cuda.get_device_name()


def _check_kernels(library: NativeLibrary, targets: tuple[str, ...]) -> None:
    """Say now if the finished engine could not run for want of kernels in the plugin."""
    for target in targets:
        capability = int(target.removeprefix("sm"))
        try:
            library.check_device(*divmod(capability, 10))
        except UnsupportedError as error:
            _log.warning("the engine will load on %s but not run: %s", target, error)


def _existing(folder: Path) -> EngineMetadata | None:
    """Metadata of an earlier build; raises if `folder` holds something else."""
    if not folder.exists():
        return None
    if not (folder / METADATA_FILE).is_file() and any(folder.iterdir()):
        raise InvalidInputError(
            f"{folder} exists and is not an engine folder: choose another output"
        )
    try:
        return load_metadata(folder)
    except EngineLoadError as error:
        _log.info("building again: %s", error)
        return None
