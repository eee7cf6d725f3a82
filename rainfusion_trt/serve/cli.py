"""``rainfusion-trt serve``: the service on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rainfusion_trt.runtime import options as run
from rainfusion_trt.runtime.option_groups import (
    Attention,
    AttentionBits,
    Caching,
    Graphs,
    Place,
    Weights,
)
from rainfusion_trt.serve import options
from rainfusion_trt.spread_options import spread_options

if TYPE_CHECKING:
    from rainfusion_trt.serve.settings import ServeSettings

_BESIDE_A_FILE = ("settings", "host", "port")


@spread_options
def main(
    *,
    context: typer.Context,
    checkpoint: options.Checkpoint = None,
    demo: options.Demo = False,
    model: run.Model = None,
    graphs: Graphs,
    weights: Weights,
    attention: Attention,
    bits: AttentionBits,
    caching: Caching,
    place: Place,
    vae_tiling: run.VaeTiling = False,
    folder: options.Folder = Path("rainfusion-serve"),
    database: options.Database = None,
    content: options.Content = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    replicas: options.Replicas = 1,
    gpus: options.Gpus = 1,
    split_guidance: run.SplitGuidance = False,
    overlap: run.Overlap = False,
    queue: options.Queue = None,
    page: options.Page = False,
    allow_host: options.AllowHost = None,
    settings: options.Settings = None,
) -> None:
    """Make videos for clients, by HTTP."""
    from rainfusion_trt.serve.check import read_settings
    from rainfusion_trt.serve.local import serve_here

    chosen: dict[str, Any] = {"checkpoint": checkpoint, "demo": demo, "model": model}
    chosen |= {**asdict(graphs), **asdict(weights), **attention.arguments, **asdict(bits)}
    chosen |= {**asdict(caching), **asdict(place)}
    chosen |= {"vae_tiling": vae_tiling, "split_guidance": split_guidance, "overlap": overlap}
    device = chosen.pop("device")
    places = {"folder": folder, "database": database, "content": content}
    if settings is not None:
        _check_alone(settings, context)
        given = read_settings(settings)
    else:
        door = {"page": page, "hosts": allow_host or ()}
        count = _gpus(device, gpus, split=split_guidance, overlap=overlap)
        of_workers = {"replicas": replicas, "gpus": count}
        given = _of_options(chosen, of_workers, places, door, queue=queue)
    serve_here(given, host=host, port=port)


def _check_alone(file: Path, context: typer.Context) -> None:
    """Refuse options that a file of settings would make nothing of."""
    from rainfusion_trt.errors import InvalidInputError

    for name in context.params:
        if name in _BESIDE_A_FILE:
            continue
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise InvalidInputError(
                f"--{option} goes into {file}, which says everything but --host and --port"
            )


def _of_options(
    chosen: dict[str, Any],
    of_workers: dict[str, Any],
    places: dict[str, Any],
    door: dict[str, Any],
    *,
    queue: int | None,
) -> ServeSettings:
    """The settings of what the command line says, looked at before Ray is started."""
    from pydantic import ValidationError

    from rainfusion_trt.errors import InvalidInputError
    from rainfusion_trt.field_errors import explain_fields
    from rainfusion_trt.serve.check import check_options
    from rainfusion_trt.serve.settings import ServeSettings

    _check_source(chosen)
    check_options(chosen)
    worker = {
        "options": {n: _of_worker(n, value) for n, value in chosen.items() if _is_given(value)},
        **of_workers,
    }
    limits = {} if queue is None else {"limits": {"queued": queue}}
    folder = places.pop("folder")
    given = {name: _absolute(place) for name, place in places.items() if place is not None}
    try:
        return ServeSettings.in_folder(folder, worker=worker, **door, **limits, **given)
    except ValidationError as error:
        reason = explain_fields(error)
        raise InvalidInputError(f"{reason}: see `rainfusion-trt serve --help`") from error


def _check_source(chosen: dict[str, Any]) -> None:
    from rainfusion_trt.errors import InvalidInputError

    exported = chosen["engine"] or chosen["onnx"]
    checkpoint = chosen["checkpoint"] or ""
    if checkpoint.startswith(("/", ".")) and not Path(checkpoint).exists():
        raise InvalidInputError(f"--checkpoint {checkpoint} does not exist")
    if bool(chosen["checkpoint"]) == chosen["demo"]:
        raise InvalidInputError("give either --checkpoint, or --demo for the model that ships")
    if not chosen["demo"] and not exported and chosen["model"] is None:
        raise InvalidInputError("say which model the checkpoint holds (--model), or give --engine")
    for name in ("engine", "onnx", "engine_2", "onnx_2"):
        if chosen[name] is not None and not chosen[name].exists():
            raise InvalidInputError(f"--{name.replace('_', '-')} {chosen[name]} does not exist")


def _is_given(value: Any) -> bool:
    return value is not None and value is not False


def _of_worker(name: str, value: Any) -> Any:
    """An option in JSON; a model or a preset is none the less one where a folder is called so."""
    if isinstance(value, Path):
        return str(value.absolute())
    return _absolute(value) if name == "checkpoint" else value


def _absolute(value: Any) -> Any:
    """Names of what is here, as workers run in a folder of their own."""
    if isinstance(value, str) and "://" not in value and Path(value).exists():
        return str(Path(value).absolute())
    return value


def _gpus(device: str | None, asked: int, *, split: bool, overlap: bool) -> int:
    """Of one worker."""
    import torch

    from rainfusion_trt.errors import InvalidInputError
    from rainfusion_trt.parallel.config import ParallelConfig

    if device not in (None, "cpu", "cuda"):
        raise InvalidInputError(f"--device {device}: give cuda or cpu; which GPU, Ray decides")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InvalidInputError("--device cuda was asked for, but torch finds no CUDA GPU")
    if split and asked % 2:
        raise InvalidInputError(
            f"--split-guidance makes two groups of --gpus {asked}: give 2, 4 ..."
        )
    ParallelConfig(asked // 2 if split else asked, overlap=overlap)  # which may refuse it
    if not found or device == "cpu":
        if asked > 1:
            raise InvalidInputError(
                f"--gpus {asked} was asked for, and workers are on the CPU here"
            )
        return 0
    if asked > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InvalidInputError(f"--gpus {asked} was asked for, and torch finds {count}")
    return asked
