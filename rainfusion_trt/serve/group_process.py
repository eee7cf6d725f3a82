"""One process of a `GroupWorker`: ``python -m rainfusion_trt.serve.group_process FD``.

FD is a connection to the worker. The first message has the options; each other one is a request,
which all processes get, or None, which asks the first one to end the clip that is being made.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rainfusion_trt.console import explain
from rainfusion_trt.errors import GenerationCancelled, ParallelError, RainFusionError
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.serve.group_message import Answer
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.serve.worker import GenerationRequest, Media


def main(number: int) -> None:
    end = Connection(number)
    options, sharing = end.recv()
    worker: PipelineWorker | None = None

    def load() -> Answer:
        nonlocal worker
        worker = PipelineWorker(**options, gpus=1, parallel=ParallelConfig(**sharing))
        return Answer(description=worker.describe().model_dump_json())

    end.send(_answer(load))
    if worker is None:
        os._exit(1)  # the others may wait for this one
    stop = threading.Event()
    work: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(end, work, stop), daemon=True).start()
    while True:
        request, media, output = work.get()
        stop.clear()
        answer = _answer(partial(_make, worker, end, request, media, Path(output), stop))
        end.send(replace(answer, fault=worker.fault()))


def _listen(end: Connection, work: SimpleQueue[Any], stop: threading.Event) -> None:
    """Put requests into the queue, and set the flag where the clip is to end."""
    while True:
        try:
            message = end.recv()
        except (EOFError, OSError):
            os._exit(0)  # the worker has ended
        if message is None:
            stop.set()
        else:
            work.put(message)


def _make(
    worker: PipelineWorker,
    end: Connection,
    request: str,
    media: Media,
    output: Path,
    stop: threading.Event,
) -> Answer:
    asked = GenerationRequest.model_validate_json(request)

    def on_step(done: int, steps: int) -> None:
        end.send(Answer(step=(done, steps)))

    try:
        ran = worker.take_part(asked, media, output, on_step, stop)
    except GenerationCancelled:
        return Answer()
    return Answer(ran=None if ran is None else ran.model_dump_json())


def _answer(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except Exception as error:
        line = explain(error)
        refusal = isinstance(error, RainFusionError)
        text = line if refusal and line is not None else "".join(traceback.format_exception(error))
        return Answer(
            error=text,
            refusal=refusal,
            memory=line is not None and line.startswith("out of memory"),
            consequence=isinstance(error, ParallelError),
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
