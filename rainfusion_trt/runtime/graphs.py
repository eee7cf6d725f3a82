"""What engines and ONNX files say about themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rainfusion_trt.errors import EngineLoadError, InvalidInputError, UnsupportedError
from rainfusion_trt.graph_file import METADATA_PREFIX, GraphAccount, read_onnx

if TYPE_CHECKING:
    from rainfusion_trt.engine.recipe import Range, ShapeRange


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
    gpus
        How many GPUs may share a clip; None for one alone, and for an ONNX file.
    """

    origin: str
    account: GraphAccount
    flavour: str | None = None
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    gpus: Range | None = None

    @property
    def model(self) -> str:
        """Registry name of its model, without which `graph_of_onnx` and `graph_of_engine` raise."""
        assert self.account.model is not None
        return self.account.model

    def check_gpus(self, count: int) -> None:
        """Refuse another number of GPUs that share a clip than it was made for.

        Raises
        ------
        UnsupportedError
            It is for one GPU.
        InvalidInputError
            It is for more, or fewer.
        """
        if self.flavour is None and count > 1:
            raise UnsupportedError(
                f"parallel= with ulysses={count}: {self.origin} runs on one GPU in ONNX Runtime; "
                "build an engine of it, or use backend='torch'"
            )
        if self.flavour is None or (self.gpus is None and count == 1):
            return
        if self.gpus is None:
            raise UnsupportedError(
                f"{self.origin} is for one GPU, and ulysses={count} was asked for: export the "
                "model with --parallel and build it again, or use backend='torch'"
            )
        if not self.gpus.min <= count <= self.gpus.max:
            raise InvalidInputError(
                f"{self.origin} is for {self.gpus.min} to {self.gpus.max} GPUs a clip, and "
                f"ulysses={count} was asked for: use such a number, or build it with --gpus {count}"
            )

    def check_settings(self, given: dict[str, Any]) -> None:
        """Raise InvalidInputError for a setting other than that it was exported with.

        Also for one that nothing can be held against, as old files do not say theirs.
        """
        recorded = self.account.settings
        for name, value in given.items():
            if recorded is None:
                raise InvalidInputError(
                    f"{name}={value!r} was asked for, but {self.origin} does not say what it was "
                    "exported with: leave it out, or export again"
                )
            fixed = getattr(recorded, name)
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
    if found.model is None or not found.config:
        raise EngineLoadError(
            f"{path} does not say which model it is, and of which configuration: export it with "
            "rainfusion-trt export"
        )
    profiles = tuple(
        {record.name: record.profiles[name] for record in found.inputs if record.profiles}
        for name in found.profiles
    )
    return Graph(f"the engine {path}", found.account, found.flavour, profiles, found.gpus)


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
