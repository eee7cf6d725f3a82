"""Engine folders: looked at before a build, and put in place when they are whole."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from rainfusion_trt.engine.messages import BuildRequest, Built
from rainfusion_trt.engine.metadata import (
    ENGINE_FILE,
    FORMAT,
    METADATA_FILE,
    EngineMetadata,
    load_metadata,
    save_metadata,
)
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.progress import BuildProgress
from rainfusion_trt.errors import EngineLoadError, InvalidInputError
from rainfusion_trt.files.place import check_folder
from rainfusion_trt.files.staging import Staging, remove_leftovers

CACHE_FILE = "runtime.cache"  # what TensorRT for RTX compiled; written by the runtime
_CONTENT = {ENGINE_FILE, METADATA_FILE, CACHE_FILE}
_FIELDS_OF_0_2 = {"schema_version", "plugin_layers", "engine_sha256", "onnx_sha256", "onnx_files"}
_log = logging.getLogger(__name__)


def existing_engine(folder: Path) -> EngineMetadata | None:
    """Metadata of an earlier build; None if there is none, or it is damaged.

    Raises
    ------
    InvalidInputError
        `folder` holds something that no build has written, or no folder can be put there.
    """
    if not folder.is_dir() or folder.is_symlink():
        check_folder(folder)
        return None
    remove_leftovers(folder)
    if not any(folder.iterdir()):
        check_folder(folder)
        return None
    if not _is_ours(folder / METADATA_FILE):
        raise InvalidInputError(
            f"{folder} exists and is not an engine folder: choose another output"
        )
    try:
        return load_metadata(folder)
    except EngineLoadError as error:
        _log.info("building again: %s", error)
        return None


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder with anything in it that no build or run has put there.

    Raises
    ------
    InvalidInputError
        There is such a thing, or no folder can be put there.
    """
    check_folder(folder)
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir() if path.is_file() or path.is_symlink()}
    folders = {path.name for path in folder.iterdir()} - names
    foreign = sorted((names - _CONTENT) | folders)
    if foreign:
        raise InvalidInputError(
            f"{folder} would be replaced, and holds {', '.join(foreign[:3])}"
            f"{' ...' if len(foreign) > 3 else ''}, which no build has put there: move that away, "
            "or choose another output"
        )


def _is_ours(metadata: Path) -> bool:
    """Whether a file is the metadata of an engine, of this version or another."""
    try:
        found = json.loads(metadata.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or metadata.is_symlink():
        return False
    return found.get("format", FORMAT) == FORMAT and found.keys() >= _FIELDS_OF_0_2


def write_engine(
    stage: Staging, request: BuildRequest, facts: dict[str, Any], progress: bool
) -> Path:
    """Build in the staging folder, and put the engine in its place when it is whole."""
    folder = stage.target
    fresh = stage.new / folder.name
    fresh.mkdir()
    request = request.model_copy(update={"plan": (fresh / ENGINE_FILE).resolve()})
    started = time.monotonic()
    with BuildProgress(progress) as display:
        built = run_worker(request, display, keep=(stage.lock,))
    seconds = time.monotonic() - started
    save_metadata(fresh, _metadata(built, facts, seconds))
    try:
        check_replaceable(folder)  # it took a while
    except InvalidInputError as error:
        aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        fresh.rename(aside)
        raise InvalidInputError(f"{error}. The new engine is in {aside}") from error
    stage.publish()
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
