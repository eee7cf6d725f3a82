"""What the user gave to `Pipeline`, read as far as is cheap and checked against each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.errors import EngineLoadError, InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import VideoModel, VideoSize
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.denoiser import EngineTransformer, with_defaults
from rainfusion_trt.runtime.graphs import Graph, read_engine, read_onnx
from rainfusion_trt.runtime.select import Sources

# What makes two transformers of one class different networks. Sample sizes are defaults for the
# pipeline only, so that a tiny or reduced clip does not count as another network.
_NOT_ARCHITECTURE = ("sample_width", "sample_height", "sample_frames")
_COMPONENTS = ("transformer", "transformer_2")  # in the order of engine= and engine_2=

OptionalPath = str | Path | None


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
    """

    component: str
    engine: Path | None
    onnx: Path | None
    graphs: tuple[Graph, ...]
    original: Any = None

    @property
    def config(self) -> dict[str, Any] | None:
        """Configuration of the exported graph, None where only PyTorch is given."""
        return self.graphs[0].config if self.graphs else None


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

    @classmethod
    def read(
        cls,
        *,
        model: str | None,
        engines: Sequence[OptionalPath],
        onnx: Sequence[OptionalPath],
        checkpoint: str | Path | None,
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
        """
        if (checkpoint is None) == (pipe is None):
            raise InvalidInputError(
                "give either checkpoint= (a diffusers directory or hub id) or pipe= (a loaded "
                "diffusers pipeline): scheduler, text encoder and VAE come from it"
            )
        parts = [_part(*given, pipe) for given in zip(_COMPONENTS, engines, onnx, strict=True)]
        exported = [graph for part in parts for graph in part.graphs]
        chosen = _choose_model(model, exported, [p.original for p in parts if p.original])
        given = {name: value for name, value in settings.items() if value is not None}
        for graph in exported:
            graph.check_settings(given)
        parts = _parts_of(chosen, parts, from_pipe=pipe is not None)
        first = exported[0] if exported else None
        exported_settings = first.settings if first else None
        artifacts = cls(
            model=chosen,
            parts=tuple(parts),
            checkpoint=None if checkpoint is None else str(checkpoint),
            pipe=pipe,
            size=first.size if first else None,
            dynamic=all(graph.dynamic for graph in exported),
            settings=(exported_settings or AttentionSettings()).replace(**given),
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
            json.loads(json.dumps(c)) for c in (with_defaults(self.model, part.config), beside)
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
        return json.loads(file.read_text(encoding="utf-8"))


def _part(component: str, engine: OptionalPath, onnx: OptionalPath, pipe: Any) -> Part:
    original = getattr(pipe, component, None)
    if isinstance(original, EngineTransformer):
        raise InvalidInputError(
            "this diffusers pipeline already belongs to a Pipeline: close() that one first"
        )
    graphs = [] if engine is None else [read_engine(engine)]
    graphs += [] if onnx is None else [read_onnx(onnx)]
    paths = (None if path is None else Path(path) for path in (engine, onnx))
    return Part(component, *paths, tuple(graphs), original)


def _choose_model(model: str | None, graphs: Iterable[Graph], originals: list[Any]) -> VideoModel:
    from rainfusion_trt.models import get_model, model_names, model_of

    names = {graph.origin: get_model(graph.model) for graph in graphs}
    if model is not None:
        names = {"model=": get_model(model), **names}
    if not names and originals:
        return model_of(originals[0], components=len(originals))
    if not names:
        raise InvalidInputError(
            f"say which model the checkpoint holds: model= one of {', '.join(model_names())}"
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
    mine, others = parts[: len(model.components)], parts[len(model.components) :]
    for part in others:
        if part.graphs:
            raise InvalidInputError(
                f"{model.name} has one transformer: leave out {part.graphs[0].origin}"
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
                f"{model.name} has two transformers that take turns: give {form}= and {form}_2=; "
                f"that of {missing[0]} is missing (export it with --component {missing[0]})"
            )
    for part in mine:
        if from_pipe and part.original is None and len(mine) > 1:
            raise InvalidInputError(f"{model.name} needs pipe.{part.component}, which is not there")
        for graph in part.graphs:
            if graph.component != part.component:
                raise InvalidInputError(
                    f"{graph.origin} holds {graph.component} in the place of {part.component}: "
                    "engine= and onnx= take transformer, engine_2= and onnx_2= transformer_2"
                )
    return mine


def _check_alike(graphs: list[Graph]) -> None:
    """Transformers that take turns have to be built by one TensorRT, for one clip."""
    flavours = sorted({graph.flavour for graph in graphs if graph.flavour})
    if len(flavours) > 1:
        raise InvalidInputError(f"the engines are of {' and '.join(flavours)}: build both with one")
    sizes = {str(graph.size): graph.origin for graph in graphs if not graph.dynamic}
    if len(sizes) > 1:
        found = ", ".join(f"{origin} for {size}" for size, origin in sizes.items())
        raise InvalidInputError(f"exported for different clips: {found}")
