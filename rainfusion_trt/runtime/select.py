"""Which backend runs, from what was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError

BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime", "torch")

_NEEDS = {
    "tensorrt": "engine=<folder of rainfusion-trt build-engine>",
    "tensorrt_rtx": "engine=<folder of rainfusion-trt build-engine>",
    "onnxruntime": "onnx=<file of rainfusion-trt export>",
    "torch": "checkpoint=<diffusers directory or hub id> or pipe=<pipeline with its transformer>",
}


@dataclass(frozen=True)
class Sources:
    """What the user gave.

    Attributes
    ----------
    engine_flavour : str or None
        ``"tensorrt"`` or ``"tensorrt_rtx"``, from the engine's metadata; None without an engine.
    onnx : Path or None
        An exported file.
    transformer : bool
        Whether there is a diffusers transformer, loaded or in a checkpoint.
    """

    engine_flavour: str | None
    onnx: Path | None
    transformer: bool

    def has(self, backend: str) -> bool:
        """Whether `backend` has what it runs from."""
        if backend in ("tensorrt", "tensorrt_rtx"):
            return self.engine_flavour == backend
        return self.onnx is not None if backend == "onnxruntime" else self.transformer


def candidates(backend: str, sources: Sources, *, allow_fallback: bool) -> tuple[str, ...]:
    """Backends to try, best first; more than one only where falling back was asked for.

    Raises
    ------
    InvalidInputError
        The name is unknown, or what it runs from was not given.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise InvalidInputError(
            f"backend {backend!r} is unknown: use auto, {', '.join(BACKENDS[:-1])} or "
            f"{BACKENDS[-1]}"
        )
    possible = [name for name in BACKENDS if sources.has(name)]
    if backend == "auto":
        if not possible:
            needs = "; ".join(dict.fromkeys(_NEEDS.values()))
            raise InvalidInputError(f"nothing to run: give one of {needs}")
        return tuple(possible) if allow_fallback else (possible[0],)
    if not sources.has(backend):
        built = sources.engine_flavour
        if backend in ("tensorrt", "tensorrt_rtx") and built is not None:
            raise InvalidInputError(
                f"backend {backend!r} was asked for, but the engine was built by {built!r}: build "
                f"it with that runtime, or ask for backend={built!r}"
            )
        raise InvalidInputError(f"backend {backend!r} needs {_NEEDS[backend]}")
    worse = possible[possible.index(backend) + 1 :] if allow_fallback else []
    return (backend, *worse)
