"""``export_model``: from a diffusers transformer to a checked ONNX file."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

from rainfusion_trt import __version__
from rainfusion_trt.errors import ExportError
from rainfusion_trt.export import finish, operator, writer
from rainfusion_trt.export.capture import attention_count, capture
from rainfusion_trt.export.check import GraphFacts, check_comparable, check_model, compare
from rainfusion_trt.export.module_state import check_finite, check_plain
from rainfusion_trt.export.rewrites import rewrite
from rainfusion_trt.export.source import GraphSource, source_of_model
from rainfusion_trt.export.weightless import is_fake, leave_out_weights
from rainfusion_trt.graph_file import FusedLora, GraphAccount
from rainfusion_trt.models import VideoModel, VideoSize
from rainfusion_trt.operator.settings import AttentionSettings

OPSET = 20  # the newest whose operators every supported runtime has

Stage = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export_model` wrote.

    Attributes
    ----------
    path
        The ``.onnx`` file.
    facts
        Counted nodes.
    weight_bytes
        Size of the weights.
    weights
        "inside" the file, "beside" it in ``<path>.data`` or "none".
    seconds
        Time it took.
    error
        Relative error against PyTorch, if compared.
    loras
        What :func:`fuse_loras` had added to the weights.
    """

    path: Path
    facts: GraphFacts
    weight_bytes: int
    weights: writer.WeightsPlace
    seconds: float
    error: float | None
    loras: tuple[FusedLora, ...] = ()


def export_model(
    model: VideoModel,
    transformer: nn.Module,
    size: VideoSize,
    *,
    output: str | Path,
    batch: int | None = None,
    settings: AttentionSettings | None = None,
    dynamic: bool = False,
    component: str | None = None,
    run_compare: bool = False,
    stage: Stage = lambda _name: None,
    progress: writer.Progress | None = None,
) -> ExportReport:
    """Write a transformer as ONNX with RainFusionAttention nodes.

    Parameters
    ----------
    model
        The registry's entry the transformer belongs to.
    transformer
        Weights on the CPU or a GPU, of the dtype the graph shall have; or none, from
        :func:`rainfusion_trt.export.fake_transformer`, for a file that only shows the graph. LoRAs
        are added with :func:`rainfusion_trt.export.fuse_loras` before.
    size
        Clip that fixes the shapes, or an example of them if `dynamic`.
    output
        The ``.onnx`` file; weights above 1.5 GB go to ``<output>.data``. Both appear only when
        every check has passed.
    batch
        By default what the model's diffusers pipeline gives with guidance: 2 where both prompts go
        into the same call, else 1.
    settings
        Attributes of the nodes, without text and scale, which the model has. The sparsity is an
        input of the graph.
    dynamic
        Let batch, frames, height, width and text length vary.
    component
        Which of the pipeline's transformers it is, for models that have several.
    run_compare
        Also run the file in ONNX Runtime (float32 only).
    stage, progress
        Called with the name of each step, and with the bytes written and in all.

    Raises
    ------
    InvalidInputError, UnsupportedError
        Arguments that do not fit, before any work starts.
    ExportError
        The model could not be traced, or the file fails its checks.
    """
    dtype = cast("torch.dtype", transformer.dtype)
    check_request(transformer, dtype, output, run_compare=run_compare)
    source = source_of_model(
        model, transformer, size, batch=batch, dynamic=dynamic, component=component
    )
    return export_source(
        source,
        output=Path(output),
        settings=settings or AttentionSettings(),
        run_compare=run_compare,
        stage=stage,
        progress=progress,
    )


def check_request(
    module: nn.Module, dtype: torch.dtype, output: str | Path, *, run_compare: bool
) -> None:
    """Refuse what could not be written or compared, before any work starts."""
    writer.check_output(Path(output))
    check_plain(module)
    check_finite(module)
    if run_compare:
        check_comparable(dtype, has_weights=not is_fake(module))


def export_source(
    source: GraphSource,
    *,
    output: Path,
    settings: AttentionSettings,
    run_compare: bool,
    stage: Stage,
    progress: writer.Progress | None,
) -> ExportReport:
    """Trace, convert, tidy, write and check, whatever the source; see :func:`export_model`."""
    settings.check_model_wide()
    started = time.monotonic()
    graph, attentions = _graph(source, settings, stage)
    stage("optimize")
    finish.optimize(graph)
    finish.gather_extents(graph)
    finish.transpose_weights(graph)
    finish.name_values(graph, list(source.inputs), source.axes)
    if is_fake(source.module):
        leave_out_weights(graph, writer.data_path(output).name)
    place = writer.weights_place(graph)
    finish.describe(graph, _account(source, settings, attentions, place))
    facts, error = _write(graph, source, output, stage, progress, run_compare=run_compare)
    return ExportReport(
        path=output,
        facts=facts,
        weight_bytes=writer.weight_bytes(graph),
        weights=place,
        seconds=time.monotonic() - started,
        error=error,
        loras=source.loras,
    )


def _graph(source: GraphSource, settings: AttentionSettings, stage: Stage) -> tuple[ir.Model, int]:
    """The traced module as ONNX, and the number of its self-attentions."""
    stage("trace")
    sparsity = torch.zeros(1, device=next(source.module.parameters()).device)
    with _quiet():
        program = capture(source, sparsity, settings)
        rewrite(program)
        stage("convert")
        return _to_onnx(program), attention_count(program)


def _to_onnx(program: ExportedProgram) -> ir.Model:
    try:
        result = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # finish.optimize leaves the weights alone
            custom_translation_table=operator.translation_table(),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch.onnx could not convert the graph: {error}") from error
    assert result is not None  # only the exporter without dynamo returns None
    return result.model


def _account(
    source: GraphSource, settings: AttentionSettings, attentions: int, place: writer.WeightsPlace
) -> GraphAccount:
    return GraphAccount(
        model=source.name,
        **source.identity,
        dtype=str(source.dtype).removeprefix("torch."),
        attention_nodes=attentions,
        settings=settings,
        dynamic=bool(source.axes),
        loras=source.loras,
        weights="none" if place == "none" else None,
        version=__version__,
    )


def _write(
    graph: ir.Model,
    source: GraphSource,
    output: Path,
    stage: Stage,
    progress: writer.Progress | None,
    *,
    run_compare: bool,
) -> tuple[GraphFacts, float | None]:
    """Put the file in its place once it has passed the checks."""
    stage("write")
    with writer.staged(output) as path:
        writer.write(graph, path, progress)
        stage("check")
        return check_model(path), compare(path, source) if run_compare else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own internals and on packages it does not need."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
