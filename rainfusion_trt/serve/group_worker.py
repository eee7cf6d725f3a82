"""A worker of several GPUs: a process for each, which make every clip together.

The worker itself computes nothing. It starts the processes (`rainfusion_trt.serve.group_process`),
gives each the same request, and hears of steps and of the end from the first one. They work
together as those of ``run --gpus`` do, see `rainfusion_trt.parallel`. One that dies ends all: the
job is then another worker's, as if this one had died.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.processes.run import guarded
from rainfusion_trt.serve.group_message import Answer
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.serve.worker import (
    GenerationRequest,
    Media,
    ModelDescription,
    OnStep,
    Ran,
    Worker,
    WorkerGone,
)

_LOOK_S = 1.0  # between two looks at whether the processes live
_GRACE_S = 5.0  # in which others may say why they fail too
_MODULE = "rainfusion_trt.serve.group_process"


def pipeline_worker(*, gpus: int = 0, **options: Any) -> Worker:
    """A `PipelineWorker`, or a `GroupWorker` of them where there is more than one GPU."""
    split, timeout = options.pop("split_guidance", False), options.pop("timeout", 60.0)
    overlap = options.pop("overlap", False)
    if gpus > 1:
        return GroupWorker(
            options, gpus=gpus, split_guidance=split, overlap=overlap, timeout=timeout
        )
    if split:
        raise InvalidInputError(f"split_guidance with gpus: {gpus}: give 2, 4, ... GPUs")
    if overlap:
        raise InvalidInputError(f"overlap with gpus: {gpus}: give 2 GPUs or more")
    return PipelineWorker(**options, gpus=gpus)


class GroupWorker:
    """Processes that make a clip together, as one worker.

    Parameters
    ----------
    options
        Of `PipelineWorker`, in all of them.
    gpus : int
        How many; one process for each.
    split_guidance : bool
        Give the halves of guidance to two groups of them.
    overlap : bool
        Of `ParallelConfig`.
    timeout : float
        Seconds that one waits for another.

    Raises
    ------
    RainFusionError
        One of them cannot start: why.
    """

    def __init__(
        self,
        options: dict[str, Any],
        *,
        gpus: int,
        split_guidance: bool,
        timeout: float,
        overlap: bool = False,
    ) -> None:
        if split_guidance and gpus % 2:
            raise InvalidInputError(f"split_guidance with gpus: {gpus}: give 2, 4, ... GPUs")
        guidance = 2 if split_guidance else 1
        sharing: dict[str, Any] = {
            "ulysses": gpus // guidance,
            "guidance": guidance,
            "timeout": timeout,
            "overlap": overlap,
        }
        ParallelConfig(**sharing)  # refuses what cannot be before processes start
        self._fault: str | None = None
        self._stack = contextlib.ExitStack()
        self._ends: list[Connection] = []
        self._processes: list[subprocess.Popen] = []
        try:
            self._start(gpus)
            self._send((options, sharing))
            ready = self._answers(lambda done, steps: None)
        except BaseException:
            self.close()
            raise
        assert ready.description is not None
        self._description = ModelDescription.model_validate_json(ready.description)

    def describe(self) -> ModelDescription:
        """What the first of them makes videos with."""
        return self._description

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        """Make a video; see `rainfusion_trt.serve.worker.Worker`.

        Raises
        ------
        WorkerGone
            One of the processes has died.
        """
        if self._fault is not None:
            raise WorkerGone(self._fault)
        self._send((request.model_dump_json(), dict(media), str(output)))
        made = self._answers(on_step)
        assert made.ran is not None
        return Ran.model_validate_json(made.ran)

    def fault(self) -> str | None:
        """Why it has to be replaced; None while it works. From any thread.

        A process that dies between two videos says so to nobody: the next job would be lost to it.
        """
        if self._fault is None:
            dead = [rank for rank, each in enumerate(self._processes) if each.poll() is not None]
            if dead and self._fault is None:  # nor was it ended here meanwhile
                return self._death(dead[0])
        return self._fault

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for end in self._ends:
            end.close()
        self._stack.close()

    def _start(self, count: int) -> None:
        port = _free_port()
        for rank in range(count):
            mine, theirs = socket.socketpair()
            self._ends.append(Connection(mine.detach()))
            number = theirs.fileno()
            command = (sys.executable, "-m", _MODULE, str(number))
            environment = {**os.environ, **_place(rank, count, port)}
            with theirs:
                started = guarded(
                    command, keep=(number,), stdin=subprocess.DEVNULL, env=environment
                )
                self._processes.append(self._stack.enter_context(started))

    def _send(self, message: Any) -> None:
        for rank, end in enumerate(self._ends):
            try:
                end.send(message)
            except OSError as error:
                raise self._gone(rank) from error

    def _answers(self, on_step: OnStep) -> Answer:
        """The first one's answer once all have answered.

        Whatever `on_step` raises is raised once they have ended the clip between two steps.
        """
        answers: dict[int, Answer] = {}
        stop: BaseException | None = None
        for rank, answer in self._messages(answers):
            if answer.step is None:
                answers[rank] = answer
            elif stop is None:
                try:
                    on_step(*answer.step)
                except BaseException as error:
                    stop = error
                    with contextlib.suppress(OSError):  # it has died, which is heard next
                        self._ends[0].send(None)  # its flag ends the call of all
        self._judge(answers)
        failed = [answer for answer in answers.values() if answer.error is not None]
        if failed:
            raise self._failure(failed)
        if stop is not None:
            raise stop
        return answers[0]

    def _judge(self, answers: Mapping[int, Answer]) -> None:
        """After an error of a generation they can make the next one, unless one says otherwise."""
        faults = [answers[rank].fault for rank in sorted(answers) if answers[rank].fault]
        if len(answers) < len(self._ends):
            faults.append("its processes are out of step after an error")
        if faults:
            self._fault = faults[0]
            self.close()

    def _messages(self, answers: dict[int, Answer]) -> Iterator[tuple[int, Answer]]:
        """What they say, until all have answered, or one has failed and the others had time."""
        end: float | None = None
        while len(answers) < len(self._ends):
            waiting = {e: r for r, e in enumerate(self._ends) if r not in answers}
            for found in wait(list(waiting), _LOOK_S):
                rank = waiting[found]  # type: ignore[index]
                try:
                    answer = self._ends[rank].recv()
                except (EOFError, OSError) as error:
                    if any(said.error and not said.consequence for said in answers.values()):
                        return  # it has died of what another one has said
                    raise self._gone(rank) from error
                yield rank, answer
            if end is None and any(answer.error is not None for answer in answers.values()):
                end = time.monotonic() + _GRACE_S
            if end is not None and time.monotonic() > end:
                return

    def _failure(self, failed: list[Answer]) -> Exception:
        """The error of a generation, or of the start."""
        cause = min(failed, key=lambda answer: answer.consequence)
        if cause.consequence:  # all of them miss one that says nothing
            self._fault = cause.error
            self.close()
            return WorkerGone(cause.error)
        if cause.memory:
            return MemoryError(cause.error)
        return RainFusionError(cause.error) if cause.refusal else RuntimeError(cause.error)

    def _gone(self, rank: int) -> WorkerGone:
        self._fault = self._death(rank)
        self.close()
        return WorkerGone(self._fault)

    def _death(self, rank: int) -> str:
        return f"process {rank} of this worker's {len(self._ends)} has died"


def _place(rank: int, count: int, port: int) -> dict[str, str]:
    """What a process of torch.distributed is told of its place; each has a GPU of its own."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    numbers |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), count)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    texts = {name: str(number) for name, number in numbers.items()}
    return {**texts, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": threads}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
