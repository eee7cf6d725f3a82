"""Engine folders: looked at before a build, and put in place when they are whole."""

from __future__ import annotations

import datetime
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rainfusion_trt.engine.messages import BuildRequest, Built
from rainfusion_trt.engine.metadata import (
    ENGINE_FILE,
    METADATA_FILE,
    EngineMetadata,
    load_metadata,
    save_metadata,
)
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.progress import BuildProgress
from rainfusion_trt.errors import EngineLoadError, InvalidInputError

_log = logging.getLogger(__name__)


def existing_engine(folder: Path) -> EngineMetadata | None:
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


def write_engine(
    folder: Path, request: BuildRequest, facts: dict[str, Any], progress: bool
) -> Path:
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
