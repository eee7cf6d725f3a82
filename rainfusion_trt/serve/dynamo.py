"""A worker of NVIDIA Dynamo: ``python -m rainfusion_trt.serve.dynamo --worker worker.yaml``.

Dynamo's frontend has the HTTP interface, the queue and the routing; a process of this is one worker
behind its ``/v1/videos``. Needs the package ai-dynamo, which is imported by :func:`main` alone.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rainfusion_trt.errors import GenerationCancelled, RainFusionError
from rainfusion_trt.serve.check import read_worker
from rainfusion_trt.serve.dynamo_messages import answer, fields_of, media_of
from rainfusion_trt.serve.request import VideoRequest, plan
from rainfusion_trt.serve.settings import STEP_LIMIT_S, Limits
from rainfusion_trt.serve.step_limit import StepLimit
from rainfusion_trt.serve.worker import GenerationRequest, Media, Ran, Worker, make_worker

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two looks at whether the worker hangs


class Hung(Exception):  # noqa: N818  (as those of Dynamo)
    """The worker makes no step any more: its process has to end."""


class Videos:
    """What a ``DiffusionEngine`` of Dynamo has to do, by one worker in a thread of its own.

    Parameters
    ----------
    make
        Makes the worker; called in that thread.
    served_model_name : str, optional
        By default the model's.
    limits
        The most that a request may ask for.
    step_limit_s
        See `StepLimit`. Once it is passed, every request is refused as after a fault.
    """

    def __init__(
        self,
        make: Callable[[], Worker],
        *,
        served_model_name: str | None = None,
        limits: Limits | None = None,
        step_limit_s: float = STEP_LIMIT_S,
    ) -> None:
        self._limits = limits or Limits()
        self._step_limit_s = step_limit_s
        self._step_limit: StepLimit | None = None  # of the video under way
        # One thread, since a worker makes one video at a time; requests wait in its queue.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="videos")
        self._worker = self._thread.submit(make).result()
        self._model = self._worker.describe()
        self.served_model_name = served_model_name or self._model.model

    async def start(self, worker_id: int) -> Any:
        """Dynamo registers the model after this."""
        from dynamo.common.backend import EngineConfig

        return EngineConfig(model=self.served_model_name, served_model_name=self.served_model_name)

    async def generate(
        self, request: Mapping[str, Any], context: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Make one video and yield Dynamo's answer.

        Raises
        ------
        dynamo.llm.exceptions.InvalidArgument, Cancelled, EngineShutdown, Unknown
            A request that does not fit; a client that left; a worker that can make no more; all
            else, of which the log says more.
        """
        from dynamo.llm.exceptions import Cancelled, EngineShutdown, InvalidArgument, Unknown

        left = threading.Event()
        try:
            asked, media = self._planned(request)
            made = asyncio.get_running_loop().run_in_executor(
                self._thread, self._made, asked, media, lambda: left.is_set() or _ended(context)
            )
            ran, video = await self._unless_it_hangs(made)
        except Hung as error:
            _log.error("%s", error)
            raise EngineShutdown(str(error)) from error
        except GenerationCancelled as error:
            raise Cancelled(str(error)) from error
        except RainFusionError as error:
            raise InvalidArgument(str(error)) from error
        except Exception as error:
            _log.exception("a video could not be made")
            if (fault := self._worker.fault()) is not None:
                raise EngineShutdown(fault) from error
            raise Unknown("the video could not be made: the worker's log says why") from error
        finally:
            left.set()  # also where the task itself was cancelled, and the thread goes on
        yield answer(context.id(), self.served_model_name, request, ran, video)

    async def cleanup(self) -> None:
        """At the end of the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._fault_of_steps() is not None:
            os._exit(1)  # Python would wait for the thread that hangs

    def _fault_of_steps(self) -> str | None:
        limit = self._step_limit
        return None if limit is None else limit.fault()

    async def _unless_it_hangs(self, made: asyncio.Future[tuple[Ran, bytes]]) -> tuple[Ran, bytes]:
        while not made.done():
            await asyncio.wait({made}, timeout=min(_LOOK_S, self._step_limit_s))
            if not made.done() and (fault := self._fault_of_steps()) is not None:
                raise Hung(fault)
        return made.result()

    def _planned(self, body: Mapping[str, Any]) -> tuple[GenerationRequest, Media]:
        fields = fields_of(body)
        if fields.get("model") == self.served_model_name:  # the frontend has routed by it
            del fields["model"]
        media = media_of(fields, self._limits)
        asked = VideoRequest.read(fields)
        return plan(asked, self._model, self._limits, media=media), media

    def _made(
        self, asked: GenerationRequest, media: Media, ended: Callable[[], bool]
    ) -> tuple[Ran, bytes]:
        limit = self._step_limit = StepLimit(self._step_limit_s)

        def on_step(done: int, steps: int) -> None:
            limit.step()
            if ended():
                raise GenerationCancelled(f"the client left after {done} of {steps} steps")

        try:
            on_step(0, asked.steps)  # while it waited
            with tempfile.TemporaryDirectory(prefix="rainfusion-dynamo-") as scratch:
                made = Path(scratch) / "video.mp4"
                ran = self._worker.generate(asked, media, made, on_step)
                return ran, made.read_bytes()
        finally:
            self._step_limit = None


def _ended(context: Any) -> bool:
    return bool(context.is_stopped() or context.is_killed())


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, by the names that Dynamo's workers have."""
    parser = argparse.ArgumentParser(prog="python -m rainfusion_trt.serve.dynamo")
    parser.add_argument("--worker", type=Path, required=True, help="YAML file of its settings")
    parser.add_argument("--served-model-name", help="by default the model's")
    parser.add_argument("--namespace", default="dynamo")
    parser.add_argument("--component", default="backend")
    parser.add_argument("--endpoint", default="generate")
    parser.add_argument("--discovery-backend", default="etcd")
    parser.add_argument("--request-plane", default="tcp")
    parser.add_argument("--event-plane")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Load the worker and serve until Dynamo ends the process."""
    from dynamo.common.backend import DiffusionEngine, WorkerConfig
    from dynamo.common.backend.run import run
    from dynamo.llm import ModelInput

    class Engine(Videos, DiffusionEngine):
        @classmethod
        async def from_args(cls, argv: list[str] | None = None) -> tuple[Engine, Any]:
            given = arguments(argv)
            settings = read_worker(given.worker)
            engine = cls(
                lambda: make_worker(settings.factory, settings.options, gpus=settings.gpus),
                served_model_name=given.served_model_name,
                step_limit_s=settings.step_limit_s,
            )
            name = engine.served_model_name
            return engine, WorkerConfig(
                namespace=given.namespace,
                component=given.component,
                endpoint=given.endpoint,
                model_name=name,
                served_model_name=name,
                model_input=ModelInput.Text,  # requests come as they are
                endpoint_types="videos",
                discovery_backend=given.discovery_backend,
                request_plane=given.request_plane,
                event_plane=given.event_plane,
                enable_kv_routing=False,
            )

    run(Engine, None if argv is None else list(argv))


if __name__ == "__main__":
    main()
