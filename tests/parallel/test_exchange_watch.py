"""The watch over an engine's exchanges: NCCL, the device and the other processes are played."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from rainfusion_trt.errors import InvalidInputError, ParallelError
from rainfusion_trt.parallel import exchange as module
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.exchange import Exchange
from rainfusion_trt.parallel.sharing import sharing
from rainfusion_trt.plugin.build import source_directory


class Calls:
    """NCCL, as the library hands it on."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self.is_missing = self.is_stuck = False
        self.closed: list[bool] = []
        self.connected = threading.Event()
        self.connected.set()
        self.opened: list[tuple] = []

    def new_id(self, nccl):
        return b"id"

    def open(self, device, made, share, nccl):
        self.opened.append((device, made, share.parts, share.rank))
        if self.is_missing:
            raise ParallelError("NCCL cannot be used: pip install it")
        assert self.connected.wait(30)

    def check(self, device):
        if self.broken is not None:
            raise ParallelError(self.broken)

    def close(self, device, *, abort=False):
        if self.is_stuck:
            raise ParallelError("a call of NCCL in another thread does not come back")
        self.closed.append(abort)


class Team:
    """The other processes."""

    enqueued: int | None = 0

    def __init__(self, timeout: float = 30.0) -> None:
        self.config = ParallelConfig(ulysses=2, timeout=timeout)
        self.device = torch.device("cuda", 3)
        self.mesh = {"ulysses": SimpleNamespace(size=lambda: 2, get_local_rank=lambda: 1)}
        self.failed: str | None = None
        self.told: list[str] = []

    def meet(self):
        pass

    def agree_in(self, dimension, make):
        return make()

    def look(self):
        if self.failed is not None:
            raise ParallelError(self.failed)

    def tell(self, said):
        self.told.append(said)


class Event:
    """Behind work on the device."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


@pytest.fixture
def calls(monkeypatch) -> Calls:
    played = Calls()
    monkeypatch.setattr(module, "ParallelCalls", lambda library: played)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    monkeypatch.setattr(Exchange, "_event", lambda self: Event())
    monkeypatch.setattr(Exchange, "_synchronize", lambda self: None)
    monkeypatch.setattr(Exchange, "_enter_device", lambda self: None)
    return played


def wait_for_failure(exchange: Exchange) -> str:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            exchange.check()
        except ParallelError as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError("nothing failed")


def test_it_opens_and_closes(calls):
    exchange = Exchange(Team(), None)
    assert calls.opened == [(3, b"id", 2, 1)]
    with exchange.call():
        pass
    exchange.finish()
    exchange.close()
    assert calls.closed == [False]


def test_a_process_has_one_at_a_time(calls):
    """The library would refuse the second one too, once the others wait for it."""
    exchange = Exchange(Team(), None)
    for make in (
        lambda: Exchange(Team(), None),
        lambda: sharing(ParallelConfig(2), None, ["tensorrt"]),  # before it asks for processes
    ):
        with pytest.raises(InvalidInputError, match=r"close\(\) it first") as error:
            make()
        assert "\n" not in str(error.value)
    with pytest.raises(InvalidInputError, match="start them with `torchrun"):
        sharing(ParallelConfig(guidance=2), None, ["tensorrt"])  # which needs none
    assert len(calls.opened) == 1
    exchange.close()
    Exchange(Team(), None).close()
    assert len(calls.opened) == 2


def test_a_communicator_that_does_not_end_well_is_told(calls, caplog):
    exchange = Exchange(Team(), None)
    calls.is_stuck = True
    exchange.close()
    assert "did not end as it should: a call of NCCL in another thread" in caplog.text


def test_a_process_that_says_it_failed_ends_what_waits(calls):
    team = Team()
    exchange = Exchange(team, None)
    team.failed = "process 0 failed: out of memory"
    time.sleep(0.1)
    exchange.check()  # nothing waits yet
    with exchange.call():
        pass
    assert wait_for_failure(exchange) == team.failed
    assert calls.closed == [True]  # aborted
    with pytest.raises(ParallelError, match="out of memory"), exchange.call():
        pytest.fail("this is not to be enqueued")
    with pytest.raises(ParallelError, match="out of memory"):
        exchange.finish()
    exchange.close()
    assert calls.closed == [True, True, False]


def test_what_nccl_notices_is_told_to_the_others(calls):
    team = Team()
    exchange = Exchange(team, None)
    calls.broken = "NCCL cannot go on: remote process exited"
    with exchange.call():
        pass
    assert wait_for_failure(exchange) == calls.broken
    assert team.told == [calls.broken]
    exchange.close()


def test_an_exchange_that_does_not_end_is_an_error_in_time(calls):
    exchange = Exchange(Team(timeout=0.3), None)
    with exchange.call():
        pass
    exchange._pending[0].event.done = True  # in time
    time.sleep(0.5)
    exchange.check()
    started = time.monotonic()
    with exchange.call():
        pass
    assert "did not end within 0.3 seconds" in wait_for_failure(exchange)
    assert time.monotonic() - started < 5
    exchange.close()


def test_work_that_waits_for_its_turn_has_its_own_time(calls):
    exchange = Exchange(Team(timeout=1.0), None)
    for _ in range(3):
        with exchange.call():
            pass
    events = [work.event for work in exchange._pending]
    for event in events:  # 1.8 seconds together, none longer than 0.6
        time.sleep(0.6)
        event.done = True
    exchange.finish()
    exchange.close()


def test_an_error_of_the_call_is_not_hidden_and_leaves_no_count(calls):
    team = Team()
    exchange = Exchange(team, None)
    with exchange.call():
        pass
    with pytest.raises(InvalidInputError), exchange.call():
        raise InvalidInputError("a shape that is refused")  # before anything is enqueued
    assert team.enqueued == 1
    with pytest.raises(ValueError, match="mine"), exchange.call():
        raise ValueError("mine")
    assert team.enqueued is None  # some of it may be
    exchange.check()
    exchange.close()


def test_gpus_that_do_not_meet(calls):
    calls.connected.clear()
    with pytest.raises(ParallelError, match=r"not connected by NCCL within 0\.2 seconds"):
        Exchange(Team(timeout=0.2), None)
    team = Team()
    team.failed = "process 1 failed: no engine"
    with pytest.raises(ParallelError, match="no engine"):
        Exchange(team, None)
    calls.connected.set()
    calls.is_missing = True
    team = Team()
    with pytest.raises(ParallelError, match="pip install it"):
        Exchange(team, None)
    assert team.told == ["NCCL cannot be used: pip install it"]  # which others may have


def test_the_first_call_of_each_kind_may_compile(calls):
    exchange = Exchange(Team(timeout=0.3), None)
    for kind in ("one engine", "another engine"):
        with exchange.call(kind):
            time.sleep(0.6)
        exchange._pending[-1].event.done = True
        exchange.check()
    with pytest.raises(ParallelError, match=r"within 0\.3 seconds"), exchange.call("one engine"):
        wait_for_failure(exchange)
    exchange.close()


def test_an_error_of_the_device_ends_what_waits(calls, monkeypatch):
    def broken(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    team = Team()
    exchange = Exchange(team, None)
    monkeypatch.setattr(Event, "query", broken)
    with exchange.call():
        pass
    assert "illegal memory access" in wait_for_failure(exchange)
    assert len(team.told) == 1 and calls.closed == [True]
    exchange.close()


def test_a_communicator_that_does_not_end_is_left(calls, monkeypatch):
    monkeypatch.setattr(module, "_ENDING", 0.1)
    exchange = Exchange(Team(), None)
    release = threading.Event()
    calls.close = lambda device, *, abort=False: release.wait(30)
    exchange.close()
    release.set()


STUCK = """
    import time
    from tests.parallel.test_exchange_watch import Calls, Event, Exchange, Team, module

    played = Calls()
    module.ParallelCalls = lambda library: played
    module._LOOK = 0.02
    Exchange._event = lambda self: Event()
    Exchange._enter_device = lambda self: None
    exchange = Exchange(Team(timeout=0.2), None)
    played.is_stuck = True
    with exchange.call():
        time.sleep(60)  # inside NCCL
"""


def test_a_call_that_stays_inside_nccl_ends_the_process_with_one_error():
    root = source_directory()
    command = [sys.executable, "-c", textwrap.dedent(STUCK)]
    started = time.monotonic()
    child = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=55)
    assert child.returncode == 2, child.stderr
    assert child.stderr.startswith("Error: an exchange between the GPUs of this run did not end")
    assert child.stderr.count("\n") == 1
    assert time.monotonic() - started < 50
