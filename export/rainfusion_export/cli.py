"""Command line of the exporter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rainfusion_trt.errors import InvalidInputError, RainFusionError

if TYPE_CHECKING:
    from rainfusion_trt.models import VideoModel

    from .exporter import ExportReport

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_STAGES = {
    "trace": "Tracing the transformer",
    "convert": "Converting to ONNX",
    "optimize": "Tidying the graph",
    "write": "Writing",
    "check": "Checking the file",
}


class Config(str, Enum):
    """Which constructor arguments random weights are made for."""

    full = "full"
    tiny = "tiny"


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Such as cogvideox-5b; a wrong name lists them all.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Directory of a diffusers pipeline or transformer, or a hub id."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Seeded random weights instead.")
    ] = False,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Only the graph, in little memory.")
    ] = False,
    config: Annotated[Config, typer.Option(help="Size, without checkpoint.")] = Config.full,
    layers: Annotated[int | None, typer.Option(help="Depth, without checkpoint.")] = None,
    seed: Annotated[int, typer.Option(help="For random weights.")] = 0,
    frames: Annotated[int | None, typer.Option(help="Pixel frames [default: model's].")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels [default: model's].")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels [default: model's].")] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="[default: as the model's pipeline calls it, with guidance]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32 [default: model's].")
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic/--fixed", help="One graph for many sizes, or for one.")
    ] = False,
    method: Annotated[
        str, typer.Option(help="rainfusion, rainfusion_two_way, rainfusion_plus, rainfusion2.")
    ] = "rainfusion",
    alpha: Annotated[float, typer.Option(help="Recall from which a head has a kind.")] = 0.9,
    sink_frames: Annotated[int, typer.Option(help="Leading frames all tokens attend to.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="The .onnx file [default: named after the model].")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run it in ONNX Runtime (fp32, CPU).")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda: where weights are made.")] = "cpu",
) -> None:
    """Export a diffusers video transformer to ONNX, attention as RainFusionAttention nodes."""
    try:
        from rainfusion_trt.models import get_model
        from rainfusion_trt.routing import RainFusionSettings

        from .exporter import export_model
        from .weightless import fake_transformer

        entry = get_model(model)
        settings = RainFusionSettings(method, alpha, sink_frames)  # type: ignore[arg-type]
        size = _size(entry, config.value, frames, height, width)
        precision = _dtype(entry, dtype)
        name = str(precision).removeprefix("torch.")
        shape = "dynamic" if dynamic else size
        output = output or Path(f"{entry.name}-{shape}-{name}.onnx")
        _check_source(checkpoint, random_weights, no_weights, config.value, layers, device)
        if checkpoint is not None:
            transformer = entry.load(checkpoint, dtype=precision).to(device)
        else:
            arguments = entry.config(config.value, layers=layers)
            if no_weights:
                transformer = fake_transformer(entry, arguments, dtype=precision)
            else:
                transformer = entry.create(arguments, dtype=precision, device=device, seed=seed)
        with _progress() as progress:
            report = export_model(
                entry,
                transformer,
                size,
                output=output,
                batch=batch,
                settings=settings,
                dynamic=dynamic,
                run_compare=compare,
                **progress,
            )
    except RainFusionError as error:
        typer.secho("error: ", fg="red", err=True, nl=False)
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    typer.echo(_summary(report))


def _size(
    model: VideoModel, config: str, frames: int | None, height: int | None, width: int | None
) -> Any:
    from rainfusion_trt.models import VideoSize

    default = model.defaults.size if config == "full" else model.tiny_size
    return VideoSize(frames or default.frames, height or default.height, width or default.width)


def _dtype(model: VideoModel, name: str | None) -> Any:
    import torch

    if name is None:
        return model.defaults.dtype
    full = _DTYPES.get(name, name)
    if full not in _DTYPES.values():
        raise InvalidInputError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}")
    return getattr(torch, full)


def _check_source(
    checkpoint: str | None,
    random_weights: bool,
    no_weights: bool,
    config: str,
    layers: int | None,
    device: str,
) -> None:
    """Exactly one source of weights, and options that go with it."""
    import torch

    if device not in ("cpu", "cuda"):
        raise InvalidInputError(f"device {device!r} is neither cpu nor cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("device 'cuda': torch sees no GPU; use --device cpu")
    given = (checkpoint is not None) + random_weights + no_weights
    if given == 0:
        raise InvalidInputError(
            "give the weights: --checkpoint <directory of a diffusers pipeline or hub id>; or "
            "--random-weights for a model to test and time, or --no-weights for the graph alone"
        )
    if given > 1:
        raise InvalidInputError("--checkpoint, --random-weights, --no-weights: give one only")
    if checkpoint is not None and (layers is not None or config != "full"):
        raise InvalidInputError("--layers and --config need --random-weights or --no-weights")


@contextmanager
def _progress() -> Iterator[dict[str, Any]]:
    """Callbacks of `export_model` that show its steps on the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task("Starting", total=None)

        def stage(name: str) -> None:
            bars.update(task, description=_STAGES[name], total=None)

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield {"stage": stage, "progress": progress}


def _summary(report: ExportReport) -> str:
    facts = report.facts
    place = {"inside": "inside", "beside": "beside it in .data", "none": "left out"}
    line = (
        f"{report.path}: {facts.nodes} nodes, {facts.attentions} RainFusionAttention, "
        f"{_bytes(report.weight_bytes)} of weights {place[report.weights]}, {report.seconds:.0f} s"
    )
    if report.error is not None:
        line += f", ONNX Runtime differs by {report.error:.1e} (relative)"
    return line


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
