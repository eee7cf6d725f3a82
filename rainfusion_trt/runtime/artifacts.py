"""What the user gave to `Pipeline`, read as far as is cheap and checked against each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.errors import EngineLoadError, InvalidInputError
from rainfusion_trt.models.base import VideoModel, VideoSize
from rainfusion_trt.runtime.denoiser import EngineTransformer, with_defaults
from rainfusion_trt.runtime.ort import parse_size, read_exported
from rainfusion_trt.runtime.select import Sources

# What makes two transformers of one class different networks. Sample sizes are defaults for the
# pipeline only, so that a tiny or reduced clip does not count as another network.
_NOT_ARCHITECTURE = ("sample_width", "sample_height", "sample_frames")


@dataclass
class Artifacts:
    """What the user gave, read as far as is cheap.

    Attributes
    ----------
    model
        The model they all belong to.
    config
        Transformer configuration of the exported graph, None where only PyTorch is given.
    size, dynamic
        Clip the graph was exported for, and whether it takes others.
    settings
        Attention settings for the torch backend: the exported ones, or what was given.
    original_transformer
        The transformer of a pipeline that was handed in.
    """

    model: VideoModel
    engine: Path | None
    onnx: Path | None
    checkpoint: str | None
    pipe: Any
    config: dict[str, Any] | None
    size: VideoSize | None
    dynamic: bool
    settings: dict[str, Any]
    dtype: torch.dtype | None
    engine_flavour: str | None
    original_transformer: Any = None

    @property
    def sources(self) -> Sources:
        transformer = self.checkpoint is not None or self.original_transformer is not None
        return Sources(self.engine_flavour, self.onnx, transformer)

    @classmethod
    def read(
        cls,
        *,
        model: str | None,
        engine: str | Path | None,
        onnx: str | Path | None,
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
        exported = _read_graphs(engine, onnx)
        transformer = None if pipe is None else pipe.transformer
        if isinstance(transformer, EngineTransformer):
            raise InvalidInputError(
                "this diffusers pipeline already belongs to a Pipeline: close() that one first"
            )
        chosen = _choose_model(model, exported, transformer)
        given = {name: value for name, value in settings.items() if value is not None}
        for graph in exported:
            _check_settings(graph, given)
        first = exported[0] if exported else None
        artifacts = cls(
            model=chosen,
            engine=None if engine is None else Path(engine),
            onnx=None if onnx is None else Path(onnx),
            checkpoint=None if checkpoint is None else str(checkpoint),
            pipe=pipe,
            config=first.config if first else None,
            size=first.size if first else None,
            dynamic=first.dynamic if first else True,
            settings={**(first.settings if first else {}), **given},
            dtype=dtype,
            engine_flavour=exported[0].flavour if engine is not None else None,
            original_transformer=transformer,
        )
        artifacts._check_networks()
        return artifacts

    def _check_networks(self) -> None:
        """An exported graph holds its weights: those of another network give noise, no error."""
        beside = self._config_beside()
        if self.config is None or beside is None:
            return
        # Both through JSON, in which the exported one was kept: tuples become lists.
        mine, beside = (
            json.loads(json.dumps(c)) for c in (with_defaults(self.model, self.config), beside)
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
                f"the exported transformer is not the one of {where}: {', '.join(differ[:4])}: "
                "export and build from this checkpoint"
            )

    def _config_beside(self) -> dict[str, Any] | None:
        if self.original_transformer is not None:
            return dict(self.original_transformer.config)
        file = Path(self.checkpoint or "") / "transformer" / "config.json"
        if self.checkpoint is None or not file.is_file():
            return None
        return json.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Graph:
    """An engine's or an ONNX file's own account of itself."""

    origin: str
    model: str
    config: dict[str, Any]
    size: VideoSize | None
    dynamic: bool
    settings: dict[str, Any]
    flavour: str | None = None


def _read_graphs(engine: str | Path | None, onnx: str | Path | None) -> list[_Graph]:
    graphs = []
    if engine is not None:
        from rainfusion_trt.engine import load_metadata

        found = load_metadata(engine, verify=False)
        if found.model is None:
            raise EngineLoadError(
                f"{engine} does not say which model it is: export it with export/to_onnx.py"
            )
        fixed = all(r.fixed for t in found.inputs for r in t.profiles.values())
        graphs.append(
            _Graph(
                origin=f"the engine {engine}",
                model=found.model,
                config=found.config,
                size=parse_size(found.size),
                dynamic=not fixed,
                settings=found.settings,
                flavour=found.flavour,
            )
        )
    if onnx is not None:
        file = read_exported(onnx)
        origin = f"the ONNX file {onnx}"
        graphs.append(
            _Graph(origin, file.model, file.config, file.size, file.dynamic, file.settings)
        )
    return graphs


def _choose_model(model: str | None, graphs: list[_Graph], transformer: Any) -> VideoModel:
    from rainfusion_trt.models import get_model, model_names, model_of

    names = {graph.origin: get_model(graph.model) for graph in graphs}
    if model is not None:
        names = {"model=": get_model(model), **names}
    if not names and transformer is not None:
        return model_of(transformer)
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


def _check_settings(graph: _Graph, given: dict[str, Any]) -> None:
    for name, value in given.items():
        fixed = graph.settings.get(name, value)
        if fixed != value:
            raise InvalidInputError(
                f"{name}={value!r} was asked for, but {graph.origin} was exported with "
                f"{name}={fixed!r}: leave it out, or export again"
            )
