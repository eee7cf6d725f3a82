"""What the user gave to `Pipeline`, read as far as is cheap and checked against each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import EngineLoadError, InvalidInputError, UnsupportedError
from rainfusion_trt.models import component_names, get_model, model_names, model_of
from rainfusion_trt.models.base import VideoModel, VideoSize
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS, AttentionSettings, Precision
from rainfusion_trt.runtime.denoiser import GraphTransformer, complete_config
from rainfusion_trt.runtime.graphs import Graph, graph_of_engine, graph_of_onnx
from rainfusion_trt.runtime.select import Sources

# What makes two transformers of one class different networks. Sample sizes are defaults for the
# pipeline only, so that a tiny or reduced clip does not count as another network.
_NOT_ARCHITECTURE = ("sample_width", "sample_height", "sample_frames")

OptionalPath = str | Path | None
Files = OptionalPath | Mapping[str, OptionalPath]


def files_by_component(form: str, first: Files, second: OptionalPath) -> dict[str, Path]:
    """Component -> file, of ``engine=`` and ``engine_2=``, or of a mapping as ``engine=``.

    Parameters
    ----------
    form
        "engine" or "onnx", for messages.
    first, second
        What was given.

    Raises
    ------
    InvalidInputError
        Both ways at once, or a component that no pipeline has.
    """
    names = component_names()
    if not isinstance(first, Mapping):
        first = dict(zip(names, (first, second), strict=False))
    elif second is not None:
        raise InvalidInputError(
            f"{form}= names its transformers, so {form}_2= has no place: put {second} into it"
        )
    for name, path in first.items():
        if name not in names:
            raise InvalidInputError(
                f"{form}= names {name!r}; transformers of a pipeline are {', '.join(names)}"
            )
        if not isinstance(path, (str, Path, type(None))):
            raise InvalidInputError(f"{form}={shown(path)}: give a path")
    return {name: Path(path) for name, path in first.items() if path is not None}


@dataclass(frozen=True)
class Part:
    """One transformer of the diffusers pipeline.

    Attributes
    ----------
    component
        Its name there.
    engine, onnx
        Its exported forms.
    graphs
        What they say about themselves.
    original
        The module of a pipeline that was handed in.
    weights
        A file of its weights, in the place of the checkpoint's.
    """

    component: str
    engine: Path | None
    onnx: Path | None
    graphs: tuple[Graph, ...]
    original: Any = None
    weights: Path | None = None

    @property
    def config(self) -> dict[str, Any] | None:
        """Configuration of the exported graph, None where only PyTorch is given."""
        return self.graphs[0].account.config if self.graphs else None

    def graph_of(self, backend: str) -> Graph:
        """The graph that a backend runs."""
        flavour = None if backend == "onnxruntime" else backend
        return next(graph for graph in self.graphs if graph.flavour == flavour)


@dataclass(frozen=True)
class Artifacts:
    """What the user gave, read as far as is cheap.

    Attributes
    ----------
    model
        The model they all belong to.
    parts
        Its transformers.
    size, dynamic
        Clip the graphs were exported for, and whether they take others.
    settings
        Attention settings for the torch backend: the exported ones, or what was given.
    """

    model: VideoModel
    parts: tuple[Part, ...]
    checkpoint: str | None
    pipe: Any
    size: VideoSize | None
    dynamic: bool
    settings: AttentionSettings
    dtype: torch.dtype | None

    @property
    def sources(self) -> Sources:
        """What there is to run from."""
        first = self.parts[0]
        flavour = next((g.flavour for g in first.graphs if g.flavour), None)
        transformer = self.checkpoint is not None or first.original is not None
        return Sources(flavour, first.onnx, transformer)

    @property
    def originals(self) -> dict[str, Any]:
        """The transformers of a pipeline that was handed in, by component."""
        return {part.component: part.original for part in self.parts}

    @property
    def precision(self) -> Precision:
        """That of steps of which nobody says theirs: 8 bits where any of its graphs has them."""
        said = [graph.account.settings for part in self.parts for graph in part.graphs]
        has_eight = any(each is not None and each.precision == "8bit" for each in said)
        return "8bit" if has_eight else self.settings.precision

    @classmethod
    def read(
        cls,
        *,
        model: str | None,
        engine: Mapping[str, Path],
        onnx: Mapping[str, Path],
        checkpoint: str | Path | None,
        weights: Mapping[str, Path] | None = None,
        pipe: Any,
        settings: dict[str, Any],
        dtype: torch.dtype | None,
    ) -> Artifacts:
        """Read the metadata and check that everything belongs together.

        Raises
        ------
        InvalidInputError
            Nothing, too much, or parts of different models.
        EngineLoadError
            The engine folder is missing or damaged.
        UnsupportedError
            The model has no `Pipeline`.
        """
        if (checkpoint is None) == (pipe is None):
            raise InvalidInputError(
                "give either checkpoint= (a diffusers directory or hub id) or pipe= (a loaded "
                "diffusers pipeline): scheduler, text encoder and VAE come from it"
            )
        if pipe is not None and not any(hasattr(pipe, name) for name in component_names()):
            raise InvalidInputError(
                f"pipe={shown(pipe)}: give a loaded diffusers pipeline, which has a transformer"
            )
        weights = weights or {}
        check_weight_files(weights, pipe, exported=bool(engine or onnx))
        parts = [
            _part(name, engine.get(name), onnx.get(name), pipe, weights.get(name))
            for name in component_names()
        ]
        exported = [graph for part in parts for graph in part.graphs]
        own = [part.original for part in parts if part.original is not None]
        chosen = _choose_model(model, exported, own)
        if chosen.no_pipeline:
            raise UnsupportedError(f"Pipeline does not drive {chosen.name}: {chosen.no_pipeline}")
        given = {name: value for name, value in settings.items() if value is not None}
        # 16 bits every graph has, whatever it was exported with.
        fixed = {k: v for k, v in given.items() if (k, v) != ("precision", "16bit")}
        for graph in exported:
            graph.check_settings(fixed)
        parts = _parts_of(chosen, parts, from_pipe=pipe is not None)
        first = exported[0].account if exported else None
        # Files that record no settings are of nodes that say them, or have version 1's.
        recorded = (first.settings or OPERATOR_V1_DEFAULTS) if first else AttentionSettings()
        artifacts = cls(
            model=chosen,
            parts=tuple(parts),
            checkpoint=None if checkpoint is None else str(checkpoint),
            pipe=pipe,
            size=first.clip if first else None,
            dynamic=all(graph.account.dynamic for graph in exported),
            settings=recorded.replace(**given),
            dtype=dtype,
        )
        _check_alike(exported)
        for part in parts:
            artifacts._check_network(part)
        return artifacts

    def _check_network(self, part: Part) -> None:
        """An exported graph holds its weights: those of another network give noise, no error."""
        beside = self._config_beside(part)
        if part.config is None or beside is None:
            return
        # Both through JSON, in which the exported one was kept: tuples become lists.
        mine, beside = (
            json.loads(json.dumps(c)) for c in (complete_config(self.model, part.config), beside)
        )
        differ = [
            f"{key} {mine[key]!r} instead of {beside[key]!r}"
            for key in mine
            if key not in _NOT_ARCHITECTURE
            and not key.startswith("_")
            and mine[key] != beside.get(key, mine[key])
        ]
        if differ:
            where = "the checkpoint" if self.checkpoint else "the pipeline"
            raise EngineLoadError(
                f"the exported {part.component} is not the one of {where}: "
                f"{', '.join(differ[:4])}: export and build from this checkpoint"
            )

    def _config_beside(self, part: Part) -> dict[str, Any] | None:
        if part.original is not None:
            return dict(part.original.config)
        file = Path(self.checkpoint or "") / part.component / "config.json"
        if self.checkpoint is None or not file.is_file():
            return None
        try:
            found = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{file} is not JSON ({error}): download it again") from error
        if not isinstance(found, dict):
            raise InvalidInputError(f"{file} holds no configuration: download it again")
        return found


def check_weight_files(weights: Mapping[str, Path], pipe: Any, *, exported: bool) -> None:
    """Refuse files of weights that nothing would read, or that are not there.

    Raises
    ------
    InvalidInputError
        There is a loaded pipeline or an exported graph, or no such file.
    """
    if weights and pipe is not None:
        raise InvalidInputError(
            "transformer= is for a checkpoint, and pipe= has a transformer: load the file into it, "
            "or give checkpoint="
        )
    if weights and exported:
        raise InvalidInputError(
            "transformer= is for the torch backend, and an engine or ONNX file holds its weights: "
            "leave it out, or export that file"
        )
    for component, path in weights.items():
        if not path.exists():
            raise InvalidInputError(f"transformer= names {path} for {component}: no such file")


def _part(
    component: str, engine: Path | None, onnx: Path | None, pipe: Any, weights: Path | None
) -> Part:
    original = getattr(pipe, component, None)
    if isinstance(original, GraphTransformer):
        raise InvalidInputError(
            "this diffusers pipeline already belongs to a Pipeline: close() that one first"
        )
    graphs = [] if engine is None else [graph_of_engine(engine)]
    graphs += [] if onnx is None else [graph_of_onnx(onnx)]
    return Part(component, engine, onnx, tuple(graphs), original, weights)


def _choose_model(model: str | None, graphs: Iterable[Graph], originals: list[Any]) -> VideoModel:
    names = {graph.origin: get_model(graph.model) for graph in graphs}
    if model is not None:
        names = {"model=": get_model(model), **names}
    if not names and originals:
        return model_of(originals[0], components=len(originals))
    if not names:
        raise InvalidInputError(
            "say which model the checkpoint holds by model= or --model, one of "
            f"{', '.join(model_names())}"
        )
    chosen = next(iter(names.values()))
    for origin, other in names.items():
        if other.name != chosen.name:
            raise InvalidInputError(
                f"{next(iter(names))} says {chosen.name}, {origin} says {other.name}: "
                "they have to be one model"
            )
    return chosen


def _parts_of(model: VideoModel, parts: list[Part], *, from_pipe: bool) -> list[Part]:
    """The model's own parts, each of them there in every form that one of them has."""
    mine = [part for part in parts if part.component in model.components]
    for part in parts:
        if part in mine:
            continue
        if part.graphs:
            raise InvalidInputError(
                f"{model.name} has one transformer: leave out {part.graphs[0].origin}"
            )
        if part.weights is not None:
            raise InvalidInputError(
                f"{model.name} has one transformer: leave out that of {part.component}"
            )
        if part.original is not None:
            raise UnsupportedError(
                f"the diffusers pipeline has a {part.component}, which {model.name} does not: "
                "leave out model=, or name one that has two transformers"
            )
    for form in ("engine", "onnx"):
        missing = [part.component for part in mine if getattr(part, form) is None]
        if 0 < len(missing) < len(mine):
            raise InvalidInputError(
                f"{model.name} has {len(mine)} transformers that take turns: give {form}= and "
                f"{form}_2=, or a mapping; that of {missing[0]} is missing (export it with "
                f"--component {missing[0]})"
            )
    for part in mine:
        if from_pipe and part.original is None and len(mine) > 1:
            raise InvalidInputError(f"{model.name} needs pipe.{part.component}, which is not there")
        for graph in part.graphs:
            held = graph.account.component
            if held != part.component:
                raise InvalidInputError(
                    f"{graph.origin} holds {held} in the place of {part.component}: name them, as "
                    f"in engine={{{held!r}: ...}}, or swap engine= and engine_2=, onnx= and onnx_2="
                )
    return mine


def _check_alike(graphs: list[Graph]) -> None:
    """Transformers that take turns have to be built by one TensorRT, for one clip."""
    flavours = sorted({graph.flavour for graph in graphs if graph.flavour})
    if len(flavours) > 1:
        raise InvalidInputError(f"the engines are of {' and '.join(flavours)}: build both with one")
    fixed = [graph for graph in graphs if not graph.account.dynamic]
    sizes = {str(graph.account.size): graph.origin for graph in fixed}
    if len(sizes) > 1:
        found = ", ".join(f"{origin} for {size}" for size, origin in sizes.items())
        raise InvalidInputError(f"exported for different clips: {found}")
