"""Export a case, build its engine and load it."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.cases import Case
from benchmarks.engine.measure import Row
from rainfusion_trt import Pipeline, build_engine
from rainfusion_trt.engine import EngineRecipe, load_recipe
from rainfusion_trt.engine.folder import check_replaceable
from rainfusion_trt.export import export_model
from rainfusion_trt.export.writer import data_path, is_whole
from rainfusion_trt.graph_file import BITS, BITS_INPUT
from rainfusion_trt.models import VideoSize
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.base import Backend
from rainfusion_trt.runtime.denoiser import GraphDenoiser
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

_RECORD = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """An exported case and, unless it was left out, its engine.

    Attributes
    ----------
    onnx
        The file.
    engine
        Folder of the engine; None where only ONNX Runtime will run it.
    seconds
        Duration of each step that was run.
    """

    onnx: Path
    engine: Path | None
    seconds: dict[str, float]

    def rows(self) -> list[Row]:
        return [{"what": step, "seconds": value} for step, value in self.seconds.items()]

    def remove(self) -> None:
        """Remove its files, and their folder if there is nothing else in it."""
        if self.engine is not None:
            check_replaceable(self.engine)
            shutil.rmtree(self.engine)
        for file in (self.onnx, data_path(self.onnx), self.onnx.with_name(_RECORD)):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.onnx.parent.rmdir()


def prepare(
    case: Case,
    folder: Path,
    *,
    transformer: nn.Module | None = None,
    recipe: EngineRecipe | Path | None = None,
    target: str | None = "native",
) -> Prepared:
    """Export a case into `folder` and build its engine, unless that was done before.

    Parameters
    ----------
    folder
        Folder for this case alone.
    transformer
        The case's network, if it is there already.
    recipe
        By default the sizes of the exported file.
    target
        Target of the engine; None builds none.
    """
    if isinstance(recipe, Path):
        recipe = load_recipe(recipe)
    profile: EngineRecipe = fixed_recipe(case) if recipe is None else recipe
    wanted = {
        "case": case.signature(),
        "target": target,
        "recipe": profile.model_dump(mode="json") if target is not None else None,
    }
    done = _earlier(folder, wanted)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    start = time.perf_counter()
    transformer = case.transformer() if transformer is None else transformer
    export_model(
        case.model,
        transformer,
        case.size,
        output=path,
        batch=case.batch,
        dynamic=case.dynamic,
        settings=AttentionSettings(method=case.method, precision=case.precision),
        component=case.model.components[0],
    )
    seconds = {"export": round(time.perf_counter() - start, 1)}
    engine = None
    if target is not None:
        start = time.perf_counter()
        engine = build_engine(path, recipe=profile, target=target)
        seconds["build"] = round(time.perf_counter() - start, 1)
    (folder / _RECORD).write_text(json.dumps({**wanted, "seconds": seconds}), encoding="utf-8")
    return Prepared(path, engine, seconds)


def _earlier(folder: Path, wanted: dict[str, Any]) -> Prepared | None:
    """The files of an earlier run, if it prepared the same case and they are whole."""
    path = folder / "model.onnx"
    try:
        found = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        seconds = found.pop("seconds")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):  # missing or damaged
        return None
    if found != wanted or not is_whole(path):
        return None
    return Prepared(path, path.with_suffix(".engine") if wanted["target"] else None, seconds)


def fixed_recipe(case: Case) -> EngineRecipe:
    """Recipe for a file of fixed shapes: it has one size."""
    return EngineRecipe.model_validate({"model": case.model.name, "precision": _precision(case)})


def recipe_of_sizes(case: Case, sizes: Mapping[str, VideoSize]) -> EngineRecipe:
    """Recipe for a file of dynamic shapes, one optimisation profile a size."""
    clips = {
        name: {"frames": s.frames, "height": s.height, "width": s.width, "batch": case.batch}
        for name, s in sizes.items()
    }
    return EngineRecipe.model_validate(
        {"model": case.model.name, "precision": _precision(case), "sizes": clips}
    )


def _precision(case: Case) -> str:
    # No engine is built in float32, which only ONNX Runtime runs here.
    return "float16" if case.dtype is torch.float16 else "bfloat16"


def load(prepared: Prepared, case: Case) -> Backend:
    """The engine on its GPU, or the ONNX file on the CPU."""
    if prepared.engine is not None:
        from rainfusion_trt.runtime.tensorrt import TensorRTBackend

        return TensorRTBackend(prepared.engine)
    return OnnxRuntimeBackend(prepared.onnx, device=case.device)


def backend_of(pipeline: Pipeline) -> Backend:
    """The backend of a pipeline that runs an exported graph."""
    denoiser = pipeline.denoiser
    if not isinstance(denoiser, GraphDenoiser):
        raise TypeError(f"{denoiser.describe()} runs no exported graph")
    return denoiser.backend


class Engine:
    """A loaded graph with one set of inputs.

    Attributes
    ----------
    sparse
        Whether its attention can be sparse; ONNX Runtime's cannot.
    """

    def __init__(self, backend: Backend, inputs: Mapping[str, Tensor]) -> None:
        self.backend = backend
        self.inputs = dict(inputs)
        self.sparse = backend.sparse
        self.sparsity = torch.zeros(1, device=backend.device)

    def __call__(self, sparsity: float) -> Tensor:
        self.sparsity.fill_(sparsity)
        feed = {**self.inputs, "sparsity": self.sparsity}
        if BITS_INPUT in self.backend.inputs:
            feed[BITS_INPUT] = torch.zeros(BITS["8bit"], device=self.backend.device)
        outputs = self.backend.run(feed)
        return next(iter(outputs.values())).clone()  # the video, also of models with sound
