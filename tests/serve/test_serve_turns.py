"""Turns of a door on workers that hang, without Ray."""

from __future__ import annotations

import asyncio
import threading
from itertools import cycle
from types import SimpleNamespace

from helpers.serve_running import make_running
from helpers.serve_workers import JournalWorker, journal_lines, wait_for
from rainfusion_trt.serve.ray_app import Turns
from rainfusion_trt.serve.runner import JobRunner


class Workers:
    """A handle of runners, each of which takes one turn at a time, as Ray gives them."""

    def __init__(self, runners):
        self._free = {runner: threading.Lock() for runner in runners}
        self._next = cycle(runners)
        self.take_turn = SimpleNamespace(remote=self._remote)

    async def _remote(self, turn):
        return await asyncio.to_thread(self._run, turn)

    def _run(self, turn):
        while True:
            runner = next(self._next)
            if self._free[runner].acquire(timeout=0.05):
                try:
                    return runner.run_next(turn)
                finally:
                    self._free[runner].release()


def test_a_turn_that_hangs_is_not_waited_for(tmp_path):
    """It is under way for as long as its worker lives; jobs that come later are run elsewhere."""
    running = make_running(tmp_path, lease_s=0.5)
    store, content = running.service.store, running.service.content
    workers = [JournalWorker(journal=str(running.journal)) for _ in range(2)]
    runners = [
        JobRunner(store, content, worker, f"worker-{i}", step_limit_s=1.5)
        for i, worker in enumerate(workers)
    ]
    turns = Turns(store, "test", Workers(runners))
    turns.start()
    hung = running.post(prompt="hang")["id"]
    turns.wake()
    wait_for(lambda: running.state(hung)["status"] == "completed")
    assert journal_lines(running.journal, "began") == ["hang", "hang"]
    later = running.post(prompt="later")["id"]
    turns.wake()
    wait_for(lambda: running.state(later)["status"] == "completed", seconds=10)
    (fault,) = [fault for runner in runners if (fault := runner.fault())]
    assert "hangs" in fault
    for worker in workers:
        worker.go.set()
    wait_for(lambda: not turns._under_way)


def test_turns_are_told_apart_by_their_jobs(tmp_path):
    running = make_running(tmp_path)
    running.post()
    seen = []
    generate = running.worker.generate

    def watched(*given):
        seen.append(running.service.store.running())
        return generate(*given)

    running.worker.generate = watched
    running.runner.run_next("turn-1")
    assert seen == [{"turn-1"}] and running.service.store.running() == set()
