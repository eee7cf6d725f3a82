"""``export_model``: from a diffusers transformer to a checked ONNX file."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from rainfusion_trt import __version__
from rainfusion_trt.errors import ExportError, InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoModel, VideoSize
from rainfusion_trt.routing import RainFusionSettings

from . import finish, operator, writer
from .capture import capture
from .check import GraphFacts, check_model
from .compare import check_comparable, compare
from .rewrites import rewrite
from .weightless import is_fake, leave_out_weights

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
    """

    path: Path
    facts: GraphFacts
    weight_bytes: int
    weights: Literal["inside", "beside", "none"]
    seconds: float
    error: float | None


def export_model(
    model: VideoModel,
    transformer: nn.Module,
    size: VideoSize,
    *,
    output: str | Path,
    batch: int | None = None,
    settings: RainFusionSettings | None = None,
    dynamic: bool = False,
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
        :func:`rainfusion_export.fake_transformer`, for a file that only shows the graph.
    size
        Clip that fixes the shapes, or an example of them if `dynamic`.
    output
        The ``.onnx`` file; weights above 1.5 GB go to ``<output>.data``. Both appear only when
        every check has passed.
    batch
        By default what the model's diffusers pipeline gives with guidance: 2 where both prompts go
        into the same call, else 1.
    settings
        Attributes of the nodes. The sparsity is an input of the graph.
    dynamic
        Let batch, frames, height, width and text length vary.
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
    started = time.monotonic()
    output = Path(output)
    writer.check_output(output)
    weightless = is_fake(transformer)
    if run_compare:
        check_comparable(transformer.dtype, has_weights=not weightless)
    settings = settings or RainFusionSettings()
    axes = model.dynamic_axes() if dynamic else {}
    if batch is None:
        batch = 2 if model.guidance_batch else 1
    inputs = _inputs(model, transformer, size, batch=batch, dynamic=dynamic)
    model.prepare(transformer, size)

    stage("trace")
    sparsity = torch.zeros(1, device=transformer.device)
    with _quiet():
        program = capture(model, transformer, inputs, sparsity, settings, dynamic=dynamic)
        rewrite(program)
        stage("convert")
        graph = _to_onnx(program)
    del program
    stage("optimize")
    finish.optimize(graph)
    finish.transpose_weights(graph)
    finish.name_values(graph, list(inputs), axes)
    properties = _properties(model, transformer, size, settings, dynamic=dynamic)
    total = writer.weight_bytes(graph)
    if weightless:
        properties["weights"] = "none"
        leave_out_weights(graph, writer.data_path(output).name)
    finish.describe(graph, properties)
    stage("write")
    with writer.staged(output) as path:
        writer.write(graph, path, progress)
        stage("check")
        facts = check_model(path)
        error = compare(path, model, transformer, inputs) if run_compare else None
    return ExportReport(
        path=output,
        facts=facts,
        weight_bytes=total,
        weights="none"
        if weightless
        else "beside"
        if writer.data_path(output).exists()
        else "inside",
        seconds=time.monotonic() - started,
        error=error,
    )


def _inputs(
    model: VideoModel, transformer: nn.Module, size: VideoSize, *, batch: int, dynamic: bool
) -> dict[str, Tensor]:
    """Example inputs, checked against what can be traced."""
    if batch < 1:
        raise InvalidInputError(f"batch={batch} must be 1 or more")
    if dynamic and not model.dynamic_axes():
        raise UnsupportedError(
            f"{model.name} computes its position table for one size, which is baked into the "
            "graph: export it with --fixed, once for every size"
        )
    if dynamic:
        batch = max(batch, 2)  # torch.export takes a 1 as fixed
    device = transformer.device
    inputs = model.example_inputs(transformer, size, batch=batch, device=device)
    for name, axes in model.dynamic_axes().items() if dynamic else ():
        for axis, axis_name in axes.items():
            if inputs[name].shape[axis] < 2:
                raise InvalidInputError(
                    f"size {size} gives 1 for the dynamic axis {axis_name} of {name}; trace with a "
                    "larger clip, the graph takes smaller ones too"
                )
    return inputs


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
    return result.model


def _properties(
    model: VideoModel,
    transformer: nn.Module,
    size: VideoSize,
    settings: RainFusionSettings,
    *,
    dynamic: bool,
) -> dict[str, str]:
    config = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
    return {
        "model": model.name,
        "config": json.dumps(config, sort_keys=True),
        "size": str(size),
        "dtype": str(transformer.dtype).removeprefix("torch."),
        "attention_nodes": str(model.attention_count(transformer.config)),
        "settings": json.dumps(dataclasses.asdict(settings), sort_keys=True),
        "dynamic": json.dumps(dynamic),
        "version": __version__,
    }


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
