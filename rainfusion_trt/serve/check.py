"""What settings cannot be, said in one line before Ray or a worker is started."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.field_errors import explain_fields
from rainfusion_trt.models import get_model
from rainfusion_trt.parallel.sharing import NO_OVERLAP
from rainfusion_trt.runtime.artifacts import check_weight_files, files_by_component
from rainfusion_trt.runtime.graphs import graph_of_engine, graph_of_onnx
from rainfusion_trt.runtime.precision import precision_of_options, read_precision
from rainfusion_trt.serve.defaults import read_defaults
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.serve.settings import ServeSettings, WorkerSettings
from rainfusion_trt.serve.usual_attention import NAMES, UsualAttention
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import read_cache

T = TypeVar("T", bound=BaseModel)
# Options of `group_worker.pipeline_worker` alone.
_OF_GROUPS = ("split_guidance", "overlap", "timeout")
_NOT_OPTIONS = ("self", "pipe", "gpus", "parallel", "attention")  # of `PipelineWorker`
_GRAPHS = {
    **dict.fromkeys(("engine", "engine_2"), graph_of_engine),
    **dict.fromkeys(("onnx", "onnx_2"), graph_of_onnx),
}


def read_settings(file: Path) -> ServeSettings:
    """The settings of the service in a YAML file, those of its workers looked at too.

    Raises
    ------
    InvalidInputError
        It is no YAML, or holds what cannot be.
    OSError
        It cannot be read.
    """
    given = _read(ServeSettings, file, "docs/serving.md")
    check_worker(given.worker, file)
    return given


def read_worker(file: Path) -> WorkerSettings:
    """The settings of one worker in a YAML file, as below ``worker`` in docs/serving.md.

    Raises
    ------
    InvalidInputError
        The file is missing, no YAML, or holds what cannot be.
    """
    if not file.is_file():
        raise InvalidInputError(f"--worker {file} is no file")
    given = _read(WorkerSettings, file, "docs/integrations.md")
    if given.replicas != 1:
        raise InvalidInputError(
            f"replicas: {given.replicas} in {file}: Dynamo starts each worker; leave it out"
        )
    check_worker(given, file)
    return given


def check_worker(worker: WorkerSettings, file: Path) -> None:
    """Refuse what a worker of ours could not start with; others know their options themselves."""
    if worker.factory != WorkerSettings().factory:
        return
    check_names(worker.options, file)
    check_options(worker.options)


def check_names(options: Mapping[str, Any], file: Path) -> None:
    """Raise InvalidInputError for an option that no worker of ours has."""
    names = {*inspect.signature(PipelineWorker.__init__).parameters, *NAMES, *_OF_GROUPS}
    for name in options:
        if name not in names.difference(_NOT_OPTIONS):
            raise InvalidInputError(
                f"{file}: the options of a worker have {name!r}, which PipelineWorker does not "
                "take: leave it out, or see docs/serving.md"
            )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no worker of ours could start with; its checkpoint is not looked for.

    Raises
    ------
    RainFusionError
        An unknown model, preset, precision or cache, ratios of another model, or a file that is
        not what it has to be, or of no use.
    """
    read_defaults(options.get("defaults"))
    given = (options.get(name) for name in ("transformer", "transformer_2"))
    weights = files_by_component("transformer", *given)
    if weights and options.get("demo"):
        raise InvalidInputError("the demo model has its own transformer: leave out --transformer")
    exported = any(options.get(name) for name in ("engine", "engine_2", "onnx", "onnx_2"))
    check_weight_files(weights, None, exported=exported)
    if exported and options.get("overlap"):
        raise UnsupportedError(NO_OVERLAP)
    ratios = MagnitudeRatios.read(options.get("cache_ratios"))
    read_cache(options.get("cache"), options.get("cache_threshold"), ratios)
    shares = (options.get(name) for name in ("first_16bit", "last_16bit"))
    precision = precision_of_options(options.get("attention_precision"), *shares)
    if precision is not None:
        read_precision(precision)  # type: ignore[arg-type]
    attention = UsualAttention(**{name: options[name] for name in NAMES if name in options})
    for name, graph_of in _GRAPHS.items():
        if options.get(name) is not None:
            graph_of(options[name]).check_settings(attention.settings)
    if options.get("onnx") is not None and options.get("engine") is None:
        attention.check_sparse("onnxruntime")
    model = options.get("model")
    if model is not None:
        model = get_model(model).name
    elif options.get("engine") is not None:
        model = graph_of_engine(options["engine"]).model
    elif options.get("onnx") is not None:
        model = graph_of_onnx(options["onnx"]).model
    if ratios is not None and model is not None:
        ratios.check_model(model)


def _read(kind: type[T], file: Path, document: str) -> T:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of dates, and of depth
        raise InvalidInputError(f"{file} is not valid YAML ({error}): correct it there") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{file} holds no settings: see {document}")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        reason = explain_fields(error, known=kind.model_fields)
        raise InvalidInputError(f"{file}: {reason}: see {document}") from error
