"""The exporter's command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from rainfusion_trt.console import OneLineCommand
from rainfusion_trt.export import options
from rainfusion_trt.operator.exact_frames import frames_of_text
from rainfusion_trt.operator.settings import AttentionSettings, check_text

if TYPE_CHECKING:
    from rainfusion_trt.export.exporter import ExportReport

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_STAGES = {
    "trace": "Tracing the transformer",
    "convert": "Converting to ONNX",
    "optimize": "Tidying the graph",
    "write": "Writing",
    "check": "Checking the file",
}


@app.command(cls=OneLineCommand)
def main(
    context: typer.Context,
    model: options.Model = None,
    module: options.Module = None,
    grid: options.Grid = None,
    text: options.TextPlace = AttentionSettings.text,
    text_tokens: options.TextTokens = 0,
    kv_len: options.KvLen = None,
    attentions: options.Attentions = None,
    checkpoint: options.Checkpoint = None,
    component: options.Component = None,
    lora: options.Lora = None,
    random_weights: options.RandomWeights = False,
    no_weights: options.NoWeights = False,
    config: options.Size = options.Config.full,
    layers: options.Layers = None,
    seed: options.Seed = 0,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    batch: options.Batch = None,
    dtype: options.Dtype = None,
    dynamic: options.Dynamic = False,
    parallel: options.Parallel = False,
    method: options.Method = AttentionSettings.method,
    alpha: options.Alpha = AttentionSettings.alpha,
    sink_frames: options.SinkFrames = AttentionSettings.sink_frames,
    last_sink_frames: options.LastSinkFrames = AttentionSettings.last_sink_frames,
    exact_frames: options.ExactFrames = None,
    attention_precision: options.AttentionPrecision = AttentionSettings.precision,
    output: options.Output = None,
    compare: options.Compare = False,
    device: options.Device = "cpu",
) -> None:
    """Export a video transformer to ONNX with RainFusionAttention nodes."""
    from rainfusion_trt.export.request import (
        WeightRequest,
        check_kind,
        lora_files,
        model_job,
        module_job,
    )

    check_kind(model, module, _given(context))
    check_text(text)
    settings = AttentionSettings.of(
        method=method,
        alpha=alpha,
        sink_frames=sink_frames,
        precision=attention_precision,
        last_sink_frames=last_sink_frames,
        exact_frames=frames_of_text(exact_frames or ()),
    )
    if model is not None:
        loras = lora_files(lora)
        weights = WeightRequest(
            checkpoint,
            loras,
            random_weights,
            no_weights,
            config.value,
            layers,
            seed,
            device,
            component,
        )
        clip = (frames, height, width)
        shapes: dict[str, Any] = {"batch": batch, "dynamic": dynamic, "parallel": parallel}
        job = model_job(model, weights, clip, dtype=dtype, **shapes)
    else:
        assert module is not None  # check_kind refuses neither
        place = {"text": text, "text_tokens": text_tokens, "kv_len": kv_len}
        job = module_job(module, grid=grid, attentions=attentions, **place)
    with _progress() as progress:
        report = job.run(
            output=output or job.output, settings=settings, run_compare=compare, **progress
        )
    typer.echo(_summary(report))


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


@contextmanager
def _progress() -> Iterator[dict[str, Any]]:
    """Give callbacks for `export_model` that show its steps on the terminal."""
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
    loras = [
        f"fused LoRA {lora.file}, scale {lora.scale:g}, {lora.layers} layers, sha256 {lora.sha256}"
        for lora in report.loras
    ]
    return "\n".join([line, *loras])


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
