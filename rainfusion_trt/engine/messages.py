"""Requests to the build process and its reports, JSON both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rainfusion_trt.engine.flavour import FlavourName
from rainfusion_trt.engine.metadata import TensorRecord
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BuildRequest(_Message):
    """One build, sent to the worker on its standard input.

    Attributes
    ----------
    onnx, plugin
        The model and the plugin library.
    plan
        File to write the serialised engine to.
    flavour
        ``tensorrt`` or ``tensorrt_rtx``.
    targets
        Compute capabilities such as ``sm80``; None = the GPU of this machine.
    profiles
        Optimisation profiles: name -> dynamic input -> shapes. Empty for a fixed-shape model.
    attention_nodes, token_nodes
        Names of the nodes that must become plugin layers: attention, and what cuts the tokens for
        several GPUs.
    """

    onnx: Path
    plugin: Path
    plan: Path
    flavour: FlavourName
    targets: tuple[str, ...] | None
    profiles: dict[str, dict[str, ShapeRange]]
    builder: BuilderSettings
    attention_nodes: tuple[str, ...]
    token_nodes: tuple[str, ...] = ()


class PhaseStarted(_Message):
    event: Literal["phase_started"] = "phase_started"
    phase: str
    parent: str | None
    steps: int


class StepDone(_Message):
    event: Literal["step_done"] = "step_done"
    phase: str
    step: int


class PhaseFinished(_Message):
    event: Literal["phase_finished"] = "phase_finished"
    phase: str


class LogLine(_Message):
    event: Literal["log"] = "log"
    severity: Literal["internal_error", "error", "warning", "info", "verbose"]
    text: str

    @property
    def failure(self) -> bool:
        return self.severity in ("internal_error", "error")


class Failed(_Message):
    event: Literal["failed"] = "failed"
    text: str


class Built(_Message):
    """The engine is written."""

    event: Literal["built"] = "built"
    plugin_layers: int
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    engine_size: int
    engine_sha256: str


Event = Annotated[
    PhaseStarted | StepDone | PhaseFinished | LogLine | Failed | Built,
    Field(discriminator="event"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """One line of the worker's standard output; raises pydantic.ValidationError if it is none."""
    return _EVENT.validate_json(line)
