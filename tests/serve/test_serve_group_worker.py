"""A worker of two processes (gloo, CPU): one clip, one cancellation, one death."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from helpers.serve_running import make_running
from helpers.serve_workers import wait_for
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.models import get_model
from rainfusion_trt.serve.group_message import Answer
from rainfusion_trt.serve.group_worker import GroupWorker, pipeline_worker
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.serve.runner import JobRunner
from rainfusion_trt.serve.worker import GenerationRequest, WorkerGone
from rainfusion_trt.video import load_video

MODEL = get_model("wan2.1-1.3b")
SIZE = {"width": 128, "height": 128, "frames": 9}
DEFAULTS = {**SIZE, "steps": 2, "guidance": 4.0}
ASKED = GenerationRequest(prompt="a fox", fps=8, seed=3, sparsity=0.0, **DEFAULTS)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.bfloat16)
    tiny_pipeline(transformer).to(torch.bfloat16).save_pretrained(folder)
    return {"model": MODEL.name, "checkpoint": str(folder), "defaults": DEFAULTS, "device": "cpu"}


@pytest.fixture(scope="module")
def made(options):
    """A worker that lives until the test of its death, the last one."""
    worker = pipeline_worker(**options, gpus=2, split_guidance=True, timeout=60)
    yield worker
    worker.close()


def descendants(worker) -> list[int]:
    """The processes that compute, below their guards."""
    found = []
    for guard in worker._processes:
        children = Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text().split()
        found += map(int, children)
    return found


def test_two_processes_make_the_clip_of_one(made, options, tmp_path, one_thread):
    steps = []
    assert isinstance(made, GroupWorker) and len(set(descendants(made))) == 2
    ran = made.generate(ASKED, {}, tmp_path / "two.mp4", lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)] and ran.frames == 9 and len(ran.steps) == 2
    alone = PipelineWorker(**options)
    said = alone.describe()
    assert made.describe() == said
    alone.generate(ASKED, {}, tmp_path / "one.mp4", lambda *_: None)
    alone.close()
    one, two = (list(load_video(tmp_path / f"{name}.mp4")) for name in ("one", "two"))
    assert len(one) == len(two) == 9
    # Guidance in halves gives the same numbers; the encoder is the same.
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


def test_a_cancellation_reaches_all_and_leaves_it_usable(made, tmp_path):
    class Stop(Exception):  # noqa: N818  (no error)
        """Raised between steps."""

    def stop(done, steps):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        made.generate(ASKED.model_copy(update={"steps": 9}), {}, tmp_path / "a.mp4", stop)
    assert not (tmp_path / "a.mp4").exists() and made.fault() is None
    made.generate(ASKED, {}, tmp_path / "b.mp4", lambda *_: None)
    assert (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    ("changes", "folder", "words"),
    [
        ({"height": 130}, "", "divisible by 16"),  # before anything is exchanged
        ({"guidance": 1.0}, "", "no second half"),  # in the first step
        ({"guidance": 1e38}, "", "not finite"),  # after the last one
        ({}, "taken", "taken"),  # as its file is written, by the first process alone
    ],
)
def test_an_error_of_a_clip_leaves_the_same_processes_usable(
    made, tmp_path, changes, folder, words
):
    processes = descendants(made)
    asked = ASKED.model_copy(update=changes)
    (tmp_path / "taken").touch()  # no folder
    with pytest.raises(Exception, match=words) as error:
        made.generate(asked, {}, tmp_path / folder / "a.mp4", lambda *_: None)
    assert not isinstance(error.value, WorkerGone) and made.fault() is None
    made.generate(ASKED, {}, tmp_path / "b.mp4", lambda *_: None)
    assert (tmp_path / "b.mp4").exists() and descendants(made) == processes


def test_a_death_is_that_of_the_worker_and_its_job_is_run_again_once(made, tmp_path):
    """As a dead replica: no failure of the job, whose lease runs out."""
    running = make_running(tmp_path, worker=made, lease_s=1.0)
    job = running.post(prompt="a fox", steps=100, size="128x128", frames=9, method="rainfusion")[
        "id"
    ]
    thread = running.in_background()
    wait_for(lambda: running.state(job)["progress"] >= 2)
    processes = descendants(made)
    os.kill(processes[1], signal.SIGKILL)
    thread.join(30)
    assert made.fault() == "process 1 of this worker's 2 has died"
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    assert running.runner.fault() == made.fault() and running.drain() == []
    wait_for(running.service.store.sweep, seconds=5)
    assert running.state(job)["status"] == "queued"
    service = running.service
    other = JobRunner(service.store, service.content, Quick(made.describe()), "worker-2")
    assert other.run_next() == job
    assert (running.state(job)["status"], running.state(job)["attempt"]) == ("completed", 2)


class Quick:
    """Another worker of the model, which makes its clips at once."""

    def __init__(self, said):
        from benchmarks.serving.noop import NoopWorker

        self._said, self._noop = said, NoopWorker()

    def describe(self):
        return self._said

    def generate(self, *given):
        return self._noop.generate(*given)

    def fault(self):
        return None


def answering(*answers: Answer) -> GroupWorker:
    """A worker whose processes have said so, and did not start."""
    worker = object.__new__(GroupWorker)
    worker._ends, worker._processes, worker._fault = [], [], None
    worker._stack = contextlib.ExitStack()
    for answer in answers:
        mine, theirs = Pipe()
        theirs.send(answer)
        worker._ends.append(mine)
        worker._stack.callback(theirs.close)
    return worker


OUT = "its processes are out of step: process 1 failed"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(error="size=7 must be 8", refusal=True), RainFusionError, "^size=7 must be 8$"),
        (Answer(error="out of memory (CUDA)", memory=True), MemoryError, "CUDA"),
        (Answer(error="Traceback ... KeyError"), RuntimeError, "KeyError"),
    ],
)
def test_the_cause_is_told_and_what_is_out_of_step_ends(answer, kind, words):
    for fault in (None, OUT):
        worker = answering(answer, replace(answer, fault=fault))
        with pytest.raises(kind, match=words):
            worker._answers(lambda *_: None)
        assert worker.fault() == fault
        assert [end.closed for end in worker._ends] == [fault is not None] * 2
    with pytest.raises(WorkerGone, match="out of step"):
        worker.generate(ASKED, {}, Path("x"), lambda *_: None)


def test_a_process_that_all_others_miss_is_a_death():
    late = Answer(error="process 1 is lost", refusal=True, consequence=True, fault=OUT)
    worker = answering(late, late)
    with pytest.raises(WorkerGone, match="process 1 is lost"):
        worker._answers(lambda *_: None)
    assert worker.fault() is not None and all(end.closed for end in worker._ends)


def test_one_that_does_not_come_to_the_error_is_out_of_step(monkeypatch):
    monkeypatch.setattr("rainfusion_trt.serve.group_worker._LOOK_S", 0.02)
    monkeypatch.setattr("rainfusion_trt.serve.group_worker._GRACE_S", 0.1)
    worker = answering(Answer(error="size=7 must be 8", refusal=True))
    waits, other = Pipe()
    worker._ends.append(waits)
    with pytest.raises(RainFusionError, match="size=7 must be 8"):
        worker._answers(lambda *_: None)
    assert "out of step" in str(worker.fault()) and waits.closed
    other.close()


def test_a_death_after_the_cause_was_told_does_not_hide_it():
    """Else what has no room in memory would be tried again, and end the next group too."""
    worker = answering(Answer(error="out of memory (CUDA)", memory=True))
    mine, theirs = Pipe()
    worker._ends.append(mine)
    theirs.close()
    with pytest.raises(MemoryError, match="CUDA"):
        worker._answers(lambda *_: None)


def test_a_death_before_a_cancellation_is_that_of_the_worker():
    worker = answering()
    mine, theirs = Pipe()
    worker._ends.append(mine)
    theirs.send(Answer(step=(1, 2)))
    theirs.close()

    def cancelled(done, steps):
        raise KeyError(done)

    with pytest.raises(WorkerGone, match="process 0 of this worker's 1 has died"):
        worker._answers(cancelled)


def test_a_death_between_two_videos_is_a_fault_before_a_job_is_lost():
    worker = answering()
    worker._processes = [subprocess.Popen(("sleep", "60")) for _ in range(2)]
    worker._ends = [None, None]
    try:
        assert worker.fault() is None
        worker._processes[1].kill()
        worker._processes[1].wait()
        assert worker.fault() == "process 1 of this worker's 2 has died"
    finally:
        for process in worker._processes:
            process.kill()
            process.wait()


def test_options_that_do_not_fit(options):
    with pytest.raises(RainFusionError, match="gpus: 3: give 2, 4"):
        pipeline_worker(**options, gpus=3, split_guidance=True)
    with pytest.raises(RainFusionError, match="gpus: 0: give 2, 4"):
        pipeline_worker(**options, split_guidance=True)
    with pytest.raises(RainFusionError, match="overlap with gpus: 1: give 2 GPUs"):
        pipeline_worker(**options, gpus=1, overlap=True)
    with pytest.raises(RainFusionError, match="ulysses=1 has none"):
        pipeline_worker(**options, gpus=2, split_guidance=True, overlap=True)
    with pytest.raises(RainFusionError, match="timeout='long'"):
        pipeline_worker(**options, gpus=2, timeout="long")
