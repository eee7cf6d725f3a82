"""The service in Ray, as users start it: many clients, dead workers, a dead server.

One deployment for all, since Ray takes its time to start: a tiny seeded CogVideoX on the CPU, two
workers, a lease of eight seconds.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.serve_process import serving
from helpers.serve_workers import TINY, journal_lines, journal_process, wait_for

pytestmark = pytest.mark.slow

JOBS, CLIENTS, REAL = 100, 16, 8  # every so many jobs one of the model; others count steps
SLOW = 25  # steps of 0.2 s


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def journal(folder):
    return folder / "journal"


@pytest.fixture(scope="module")
def settings(folder, journal):
    worker = {
        "factory": "helpers.serve_workers:JournalCogVideoX",
        "options": {"journal": str(journal)},
        "replicas": 2,
        "cpus": 0.5,
        "step_limit_s": 20.0,
    }
    return {
        "database": f"sqlite:///{folder / 'jobs.sqlite'}",
        "content": str(folder / "content"),
        "lease_s": 8.0,
        "limits": {"queued": 2 * JOBS},
        "worker": worker,
    }


@pytest.fixture(scope="module")
def server(settings, folder):
    with serving(settings, folder) as running:
        yield running


def prompt(number: int) -> str:
    return f"{'job' if number % REAL else 'real'}-{number}"


def test_a_hundred_jobs_of_sixteen_clients(server, journal):
    """Every job is told twice, as clients do that got no answer; every tenth is cancelled."""

    def client(number: int) -> tuple[str, int]:
        fields = {"prompt": prompt(number), "seed": number, "request_id": f"id-{number}"}
        fields["method"] = "rainfusion"  # piecewise has one window of a clip this small
        made = server.post(**fields)
        assert server.post(**fields) == made
        if number % 10 == 9:
            server.call("DELETE", f"/v1/videos/{made}")
        return made, number

    with ThreadPoolExecutor(CLIENTS) as clients:
        made = dict(clients.map(client, range(JOBS)))
    assert len(made) == JOBS
    states = {number: server.finished(video, seconds=300) for video, number in made.items()}
    for number, state in states.items():
        cancelled = state["error"] is not None and state["error"]["code"] == "cancelled"
        assert (state["status"], state["progress"]) == ("completed", 100) or (
            state["status"] == "failed" and cancelled and number % 10 == 9
        ), state
        assert state["attempt"] <= 1
    done = [number for number, state in states.items() if state["status"] == "completed"]
    assert len(done) >= JOBS * 9 // 10
    counted = Counter(journal_lines(journal, "made"))
    assert set(counted.values()) == {1}
    assert {prompt(number) for number in done} <= set(counted)
    some = states[0]
    assert some["size"] == f"{TINY.width}x{TINY.height}" and some["model"] == "cogvideox-5b"
    assert [step["sparsity"] for step in some["ran"]["steps"]] == [0.0, 0.5]
    assert some["ran"]["steps"][1]["sparse_attentions"] > 0
    status, video = server.call("GET", f"/v1/videos/{some['id']}/content")
    assert status == 200 and video[4:8] == b"ftyp"


def test_a_dead_worker_is_replaced_and_its_job_run_again(server, journal):
    made = server.post(prompt="slow-worker", steps=SLOW)
    wait_for(lambda: server.state(made)["progress"] > 5)
    first = journal_process(journal, "slow-worker")
    os.kill(first, signal.SIGKILL)
    state = server.finished(made)
    assert (state["status"], state["attempt"]) == ("completed", 2)
    assert journal_lines(journal, "made").count("slow-worker") == 1
    assert journal_process(journal, "slow-worker") != first


def test_a_worker_that_slept_does_not_finish_what_another_has(server, journal):
    made = server.post(prompt="slow-sleeper", steps=SLOW)
    wait_for(lambda: server.state(made)["progress"] > 5)
    sleeper = journal_process(journal, "slow-sleeper")
    os.kill(sleeper, signal.SIGSTOP)
    try:
        wait_for(lambda: server.state(made)["attempt"] == 2, seconds=60)
    finally:
        os.kill(sleeper, signal.SIGCONT)
    state = server.finished(made)
    assert (state["status"], state["attempt"]) == ("completed", 2)
    assert journal_lines(journal, "made").count("slow-sleeper") == 1


def test_a_running_job_is_cancelled(server, journal):
    made = server.post(prompt="slow-cancelled", steps=200)
    wait_for(lambda: server.state(made)["progress"] >= 1)
    server.call("DELETE", f"/v1/videos/{made}")
    assert server.finished(made, seconds=20)["error"]["code"] == "cancelled"
    assert "slow-cancelled" not in journal_lines(journal, "made")


def test_jobs_outlive_the_server(server, settings, folder, journal):
    """The server is killed while two jobs run and some wait; another one goes on with them."""
    before = server.call("GET", "/v1/videos?limit=100")[1]["data"]
    jobs = [server.post(prompt=f"slow-{i}", steps=SLOW, request_id=f"s{i}") for i in range(2)]
    wait_for(lambda: all(server.state(job)["progress"] > 5 for job in jobs))
    jobs += [server.post(prompt=f"after-{i}") for i in range(4)]
    server.kill()
    wait_for(lambda: not server.is_up())
    with serving(settings, folder) as again:
        assert again.post(prompt="slow-0", steps=SLOW, request_id="s0") == jobs[0]
        states = [again.finished(job) for job in jobs]
        assert [state["status"] for state in states] == ["completed"] * 6
        assert [state["attempt"] for state in states] == [2, 2, 1, 1, 1, 1]
        kept = again.call("GET", f"/v1/videos?limit=100&after={jobs[0]}")[1]["data"]
        assert kept == before
        _hung_worker_is_replaced(again, journal)
    made = Counter(journal_lines(journal, "made"))
    assert all(made[name] == 1 for name in ("slow-0", "slow-1", *(f"after-{i}" for i in range(4))))


def _hung_worker_is_replaced(server, journal):
    """At the end, since there is a worker less until Ray has ended the one that hangs."""
    made = server.post(prompt="hang")
    wait_for(lambda: "hang" in journal_lines(journal, "began"))
    first = journal_process(journal, "hang")
    state = server.finished(made)
    assert (state["status"], state["attempt"]) == ("completed", 2)
    assert journal_process(journal, "hang") != first
    # Its turn has not ended yet, and the next job does not wait for it.
    assert server.finished(server.post(prompt="after-hang"), seconds=20)["status"] == "completed"
