"""What `Pipeline` does otherwise where several processes run it: `Alone`, or `Shared`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError, ParallelError, UnsupportedError
from rainfusion_trt.models import component_names
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.first_process import FirstProcess
from rainfusion_trt.runtime.denoiser import Denoiser
from rainfusion_trt.runtime.noise import default_states, set_default_states
from rainfusion_trt.runtime.steps import Flag, Progress, StepCallback
from rainfusion_trt.step_cache.cache import Decide, alone

if TYPE_CHECKING:
    from rainfusion_trt.runtime.artifacts import Part

NO_ONNXRUNTIME = (
    "parallel= is for engines and the PyTorch transformer; the backend here is onnxruntime: build "
    "an engine, or use backend='torch' with checkpoint= or pipe="
)
NO_OVERLAP = (
    "overlap=True is for the PyTorch transformer, and engines exchange their tokens themselves: "
    "leave it out, or use backend='torch' with checkpoint= or pipe="
)


class Alone:
    """One process, which does all of it."""

    first = True
    same_calls = True  # of the transformer, in all processes

    def place(self, device: str | torch.device | None) -> str | torch.device | None:
        """Where this process computes."""
        return device

    def denoiser(self, mine: Denoiser, model: VideoModel) -> Denoiser:
        """The denoiser of this process."""
        return mine

    def together(self) -> contextlib.AbstractContextManager[None]:
        """A context for a generation."""
        return contextlib.nullcontext()

    def prepare(
        self,
        pipe: Any,
        arguments: dict[str, Any],
        callback: StepCallback | None,
        plan: Mapping[str, Any],
    ) -> StepCallback | None:
        """Make the arguments of a generation those of all; returns the callback to use."""
        return callback

    def decider(self) -> Decide:
        """What makes one decision of a step cache of those of all processes, in a generation."""
        return alone

    def watched(
        self, progress: Progress | None, cancel: Flag | None
    ) -> tuple[Progress | None, Flag | None]:
        """Who is told of the progress, and the flag that all look at between two steps."""
        return progress, cancel

    def fault(self) -> str | None:
        """Why no generation can be made any more; None where one can, also after an error."""
        return None


class Shared(Alone):
    """One of several processes; all of them run the same diffusers pipeline."""

    # A half of guidance that is off in a step is nobody's, and the other one not everybody's.
    same_calls = False

    def __init__(self, config: ParallelConfig, device: str | torch.device | None) -> None:
        from rainfusion_trt.parallel.team import Team

        self.team = Team.join(config, device)
        self.first = self.team.first
        if not self.first:
            logging.getLogger("rainfusion_trt").setLevel(logging.ERROR)

    def place(self, device: str | torch.device | None) -> torch.device:
        return self.team.device

    def denoiser(self, mine: Denoiser, model: VideoModel) -> Denoiser:
        from rainfusion_trt.parallel.denoiser import ParallelDenoiser
        from rainfusion_trt.parallel.graph_denoiser import ParallelGraphDenoiser

        self.team.meet()  # loading takes its time
        first = self.team.agree(lambda: mine.name)
        if first != mine.name:
            raise UnsupportedError(
                f"process {self.team.rank} runs {mine.name} and process 0 {first}, by fallback: "
                f"the processes exchange tokens only with one backend; give backend={first!r} to "
                "see why it does not run"
            )
        kind = ParallelDenoiser if mine.name == "torch" else ParallelGraphDenoiser
        return kind(mine, model, self.team)

    def together(self) -> contextlib.AbstractContextManager[None]:
        return self.team.together()

    def prepare(
        self,
        pipe: Any,
        arguments: dict[str, Any],
        callback: StepCallback | None,
        plan: Mapping[str, Any],
    ) -> StepCallback | None:
        """One seed, one set of arguments and one callback, the first process's.

        `plan` is how the steps run, whoever said so, which has to be alike too.

        Raises
        ------
        InvalidInputError
            The processes were called with different arguments; the message names them.
        """
        self.team.meet()
        config = self.team.config
        plan = {**plan, "parallel": (config.ulysses, config.guidance, config.overlap)}
        mine = digests_of_call(pipe, arguments, callback, plan)
        first = self.team.agree(lambda: mine)
        differ = [name for name in sorted({*mine, *first}) if mine.get(name) != first.get(name)]
        if differ:
            raise InvalidInputError(
                f"process {self.team.rank} was called with other arguments than process 0 "
                f"({', '.join(differ)}): all of them have to make the same clip"
            )
        arguments["generator"] = self._same_noise(arguments.get("generator"))
        if not self.first:
            arguments["output_type"] = "latent"  # the first process alone needs frames
            pipe.set_progress_bar_config(disable=True)
        self._of_first.pipe = pipe
        return None if callback is None else self._of_first.callback(callback)

    def decider(self) -> Decide:
        """The first process decides: GPUs that decide by themselves would wait for each other."""
        topic = self.team.topic()
        return lambda step, make: self.team.agree(make, f"{topic}/{step}")

    def watched(
        self, progress: Progress | None, cancel: Flag | None
    ) -> tuple[Progress | None, Flag | None]:
        """The first process alone tells its progress; that and its flag end the call of all."""
        self._of_first = FirstProcess(self.team, cancel)
        return self._of_first.progress(progress), self._of_first

    def fault(self) -> str | None:
        """What the processes are out of step by."""
        try:
            self.team.look()
        except ParallelError as error:
            return f"its processes are out of step: {error}"
        return None

    def _same_noise(self, given: Any) -> Any:
        """Generators in the state of the first process's; a seed of its own where there is none.

        So are torch's own, which a scheduler may draw from.
        """
        if given is None:
            seed = self.team.agree(lambda: int(torch.randint(2**62, (1,))))
            given = torch.Generator("cpu").manual_seed(seed)
        generators = given if isinstance(given, list) else [given]
        device = self.team.device
        states, noise = self.team.agree(
            lambda: ([g.get_state() for g in generators], default_states(device))
        )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        set_default_states(noise, device)
        return given


def sharing(
    config: ParallelConfig | None,
    device: str | torch.device | None,
    backends: Sequence[str],
    parts: Sequence[Part] = (),
) -> Alone:
    """How `Pipeline` works, with these processes and the backends that it may take.

    Parameters
    ----------
    parts
        The transformers, whose engines say how many GPUs they are for.

    Raises
    ------
    UnsupportedError
        Several processes and ONNX Runtime, an engine that is for one, or overlap with either.
    InvalidInputError, ParallelError
        The processes are not there, the engine is for another number, or another Pipeline of this
        process has the communicator that it would need.
    """
    count = 1 if config is None else config.ulysses
    if config is not None and config.overlap and any(name != "torch" for name in backends):
        raise UnsupportedError(NO_OVERLAP)
    for name in backends:
        if name == "torch":
            continue
        for part in parts:
            part.graph_of(name).check_gpus(count)
    if config is None or config.processes == 1:
        return Alone()
    if "onnxruntime" in backends:
        raise UnsupportedError(NO_ONNXRUNTIME)
    if count > 1 and backends[0] != "torch":  # before engines are loaded, and the others asked
        from rainfusion_trt.parallel.exchange import Exchange

        Exchange.refuse_second()
    return Shared(config, device)


def digests_of_call(
    pipe: Any,
    arguments: Mapping[str, Any],
    callback: StepCallback | None,
    plan: Mapping[str, Any],
) -> dict[str, str]:
    """By name, a digest of all that decides a clip, by which processes tell whether it is the same.

    Of plain values, tensors and pictures; of other things by their class. Weights are not in it.
    """
    said = {
        **arguments,
        **plan,
        "scheduler": (type(pipe.scheduler).__name__, _config(pipe.scheduler)),
        "callback_on_step_end": callback is not None,
    }
    for name in component_names():
        transformer = getattr(pipe, name, None)
        if transformer is not None:
            said[name] = (_config(transformer), str(transformer.dtype))
    return {name: _digest(value) for name, value in said.items()}


def _config(component: Any) -> dict[str, Any]:
    """Its configuration, without where it is from."""
    config = getattr(component, "config", {})
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _digest(value: Any) -> str:
    said = hashlib.sha256()
    _add(said, value)
    return said.hexdigest()


def _add(said: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        said.update(f"{data.dtype} {tuple(data.shape)}".encode())
        said.update(data.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        said.update(f"{len(value)}".encode())
        for each in value:
            _add(said, each)
    elif isinstance(value, Mapping):
        said.update(f"{len(value)}".encode())
        for name in sorted(value, key=str):
            _add(said, str(name))
            _add(said, value[name])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        said.update(type(value).__name__.encode())
        _add(said, {each.name: getattr(value, each.name) for each in dataclasses.fields(value)})
    elif hasattr(value, "tobytes"):  # an array, or an image of Pillow
        said.update(f"{getattr(value, 'shape', None) or value.size}".encode())
        said.update(value.tobytes())
    elif value is None or isinstance(value, (str, bool, int, float)):
        said.update(repr(value).encode())
    else:
        said.update(type(value).__name__.encode())
