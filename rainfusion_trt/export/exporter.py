"""``export_model`` turns a diffusers transformer into a checked ONNX file."""

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
from rainfusion_trt.argument_types import shown, typed
from rainfusion_trt.errors import ExportError, InvalidInputError
from rainfusion_trt.export import finish, operator, step_precision, writer
from rainfusion_trt.export.capture import attention_count, capture
from rainfusion_trt.export.check import GraphFacts, check_comparable, check_model, compare
from rainfusion_trt.export.module_state import check_finite, check_plain
from rainfusion_trt.export.rewrites import rewrite
from rainfusion_trt.export.source import GraphSource, source_of_model
from rainfusion_trt.export.squeezes import squeezes_to_gathers
from rainfusion_trt.export.weightless import is_fake, leave_out_weights
from rainfusion_trt.graph_file import SHAPE_INPUTS, FusedLora, GraphAccount
from rainfusion_trt.models import VideoModel, VideoSize
from rainfusion_trt.models.transformer import config_of
from rainfusion_trt.operator.arguments import check_precision
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.operator.sparse_grid import describe_obstacle, obstacle_to_sparsity

logger = logging.getLogger("rainfusion_trt")

OPSET = 20  # the newest that every supported runtime has

Stage = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """The outcome of :func:`export_model`.

    Attributes
    ----------
    path
        The ``.onnx`` file.
    facts
        Node counts of the graph.
    weight_bytes
        Size of the weights in bytes.
    weights
        Place of the weights: "inside" the file, "beside" it in ``<path>.data``, or "none".
    seconds
        Duration of the export.
    error
        Relative error against PyTorch; None if the file was not compared.
    loras
        LoRAs that :func:`fuse_loras` had added to the weights.
    """

    path: Path
    facts: GraphFacts
    weight_bytes: int
    weights: writer.WeightsPlace
    seconds: float
    error: float | None
    loras: tuple[FusedLora, ...] = ()


@typed
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
    parallel: bool = False,
    run_compare: bool = False,
    stage: Stage = lambda _name: None,
    progress: writer.Progress | None = None,
) -> ExportReport:
    """Write a transformer as ONNX with RainFusionAttention nodes.

    Parameters
    ----------
    model
        The registry entry of the transformer.
    transformer
        The module to export, on the CPU or a GPU. The graph gets its dtype. Use
        :func:`rainfusion_trt.export.fake_transformer` for a graph without weights. Add LoRAs first,
        with :func:`rainfusion_trt.export.fuse_loras`.
    size
        Clip size that fixes the shapes; with `dynamic`, only an example.
    output
        The ``.onnx`` file; weights above 1.5 GB go to ``<output>.data``. Both appear only after
        every check has passed.
    batch
        Batch size. The default is that of the model's diffusers pipeline with guidance: 2 if both
        prompts go into one call, else 1.
    settings
        Attributes of the nodes, except text and scale, which come from the model. Sparsity is an
        input of the graph; with ``precision="8bit"`` so is `bits`, whose length, 8 or 16, is the
        precision of a call.
    dynamic
        Whether batch, frames, height, width and text length may vary.
    component
        Name of the transformer in its pipeline, for models that have several.
    parallel
        Whether several GPUs can share a clip: the graph cuts the tokens, for as many GPUs as the
        runtime has.
    run_compare
        Whether to compare the file in ONNX Runtime with PyTorch (float32 only).
    stage, progress
        Callbacks: one gets the name of each step, the other the bytes written and their total.

    Raises
    ------
    InvalidInputError, UnsupportedError
        The arguments do not fit; raised before any work starts.
    ExportError
        The model cannot be traced, or the file fails its checks.
    """
    if not hasattr(transformer, "dtype") or not config_of(transformer):
        raise InvalidInputError(
            f"transformer={shown(transformer)} is none of diffusers, with a dtype and a "
            "configuration: export_module takes modules of any kind"
        )
    dtype = cast("torch.dtype", transformer.dtype)
    settings = settings or AttentionSettings()
    check_precision(settings.precision, model.head_size(config_of(transformer)))
    check_request(transformer, dtype, output, run_compare=run_compare)
    source = source_of_model(
        model,
        transformer,
        size,
        batch=batch,
        dynamic=dynamic,
        component=component,
        parallel=parallel,
    )
    if not source.axes.keys() - set(SHAPE_INPUTS):
        _say_if_dense(model, transformer, size, settings)
    return export_source(
        source,
        output=Path(output),
        settings=settings,
        run_compare=run_compare,
        stage=stage,
        progress=progress,
    )


def _say_if_dense(
    model: VideoModel, transformer: nn.Module, size: VideoSize, settings: AttentionSettings
) -> None:
    """Warn of a graph of one clip size whose attention is dense there at any sparsity."""
    config = config_of(transformer)
    extents = model.extents(config, size, 1)
    grid = tuple(extents[axis] for axis in ("grid_frames", "grid_height", "grid_width"))
    obstacle = obstacle_to_sparsity(grid, settings, model.head_size(config))
    if obstacle is not None:
        why = describe_obstacle(obstacle, grid, settings)
        logger.warning("a graph of %s alone runs dense at any sparsity: %s", size, why)


def check_request(
    module: nn.Module, dtype: torch.dtype, output: str | Path, *, run_compare: bool
) -> None:
    """Refuse an export that could not be written or compared, before any work starts."""
    writer.check_output(Path(output))
    check_plain(module)
    check_finite(module)
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise InvalidInputError(
            "torch.autocast is on, which would put casts into the graph: export outside of it"
        )
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
    """Trace, convert, tidy, write and check any source; see :func:`export_model`."""
    settings.check_model_wide()
    if settings.precision == "8bit":
        source = step_precision.with_bits(source)
    started = time.monotonic()
    graph, attentions = _graph(source, settings, stage)
    stage("optimize")
    finish.optimize(graph)
    squeezes_to_gathers(graph)
    finish.transpose_weights(graph)
    finish.name_values(graph, list(source.inputs), source.outputs, source.axes)
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
    """Trace the module; give it as ONNX, with the number of its self-attentions."""
    stage("trace")
    device = next(source.module.parameters()).device
    sparsity = torch.zeros(1, dtype=torch.float32, device=device)
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
    account = GraphAccount(
        model=source.name,
        **source.identity,
        dtype=str(source.dtype).removeprefix("torch."),
        attention_nodes=attentions,
        settings=settings,
        dynamic=bool(source.axes.keys() - set(SHAPE_INPUTS)),
        loras=source.loras,
        weights="none" if place == "none" else None,
        version=__version__,
    )
    return account if source.cuts is None else account.model_copy(update={"parallel": True})


def _write(
    graph: ir.Model,
    source: GraphSource,
    output: Path,
    stage: Stage,
    progress: writer.Progress | None,
    *,
    run_compare: bool,
) -> tuple[GraphFacts, float | None]:
    """Write and check the file; it reaches its place only if it passes."""
    stage("write")
    with writer.staged(output) as path:
        writer.write(graph, path, progress)
        stage("check")
        return check_model(path), compare(path, source) if run_compare else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.onnx's remarks on its internals and on packages it does not need."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
