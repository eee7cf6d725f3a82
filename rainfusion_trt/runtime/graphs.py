"""What engines and ONNX files say about themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rainfusion_trt.errors import EngineLoadError, InvalidInputError
from rainfusion_trt.graph_file import METADATA_PREFIX, GraphAccount, read_onnx

if TYPE_CHECKING:
    from rainfusion_trt.engine.recipe import ShapeRange


@dataclass(frozen=True)
class Graph:
    """An engine or an ONNX file that the runtime may run.

    Attributes
    ----------
    origin
        The engine or file, in words.
    account
        What it says about itself.
    flavour
        TensorRT that built it; None for an ONNX file.
    profiles
        Shapes of its inputs, by name, for each optimisation profile of an engine.
    """

    origin: str
    account: GraphAccount
    flavour: str | None = None
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()

    @property
    def model(self) -> str:
        """Registry name of its model, without which `graph_of_onnx` and `graph_of_engine` raise."""
        assert self.account.model is not None
        return self.account.model

    def check_settings(self, given: dict[str, Any]) -> None:
        """Raise InvalidInputError where another setting is asked for than it was exported with."""
        if self.account.settings is None:
            return
        for name, value in given.items():
            fixed = getattr(self.account.settings, name)
            if fixed != value:
                raise InvalidInputError(
                    f"{name}={value!r} was asked for, but {self.origin} was exported with "
                    f"{name}={fixed!r}: leave it out, or export again"
                )


def graph_of_engine(path: str | Path) -> Graph:
    """The graph in an engine folder, by its metadata.json.

    Raises
    ------
    EngineLoadError
        The folder is missing or damaged, or does not say which model it is.
    """
    from rainfusion_trt.engine import load_metadata

    found = load_metadata(path, verify=False)
    if found.model is None:
        raise EngineLoadError(
            f"{path} does not say which model it is: export it with rainfusion-trt export"
        )
    profiles = tuple(
        {record.name: record.profiles[name] for record in found.inputs if record.profiles}
        for name in found.profiles
    )
    return Graph(f"the engine {path}", found.account, found.flavour, profiles)


def graph_of_onnx(path: str | Path) -> Graph:
    """The graph in an ONNX file, by its metadata.

    Raises
    ------
    InvalidInputError
        No such file, no ONNX, or not written by this project's exporter.
    """
    account = read_onnx(path).account
    if account.model is None or not account.config:
        raise InvalidInputError(
            f"{path} has no {METADATA_PREFIX}model and {METADATA_PREFIX}config in its metadata: "
            "export the model with rainfusion-trt export"
        )
    return Graph(f"the ONNX file {path}", account)
