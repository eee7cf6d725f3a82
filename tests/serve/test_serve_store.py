"""The store, in SQLite and in PostgreSQL: claims, leases, and states that stay."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from helpers import postgres
from helpers.serve_workers import described
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.serve.content import open_content
from rainfusion_trt.serve.database import jobs
from rainfusion_trt.serve.errors import ServiceError, is_full
from rainfusion_trt.serve.jobs import JobError, new_id
from rainfusion_trt.serve.service import VideoService
from rainfusion_trt.serve.settings import Limits, ServeSettings
from rainfusion_trt.serve.store import Store
from rainfusion_trt.serve.worker import GenerationRequest, Ran

REQUEST = GenerationRequest(prompt="a", width=96, height=64, frames=9, fps=8, seed=1, steps=2)
RAN = Ran(
    model="tiny",
    backend="torch",
    device="cpu",
    method=None,
    seed=1,
    width=96,
    height=64,
    frames=9,
    fps=8,
    guidance=None,
    steps=(),
    generate_seconds=1.0,
    encode_seconds=0.1,
)
LEASE_S = 0.5


@pytest.fixture(scope="module")
def postgres_url():
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        return
    yield (found := request.getfixturevalue("postgres_url"))
    engine = sa.create_engine(found)
    with engine.begin() as connection:
        connection.execute(sa.delete(jobs))
    engine.dispose()


@pytest.fixture
def store(url):
    made = Store(url, lease_s=LEASE_S, attempts=2)
    yield made
    made.close()


def submit(store: Store, **given):
    values = {"fingerprint": "f", "limit": 100, **given}
    return store.submit(new_id(), "tiny", REQUEST, **values)[0]


def complete(store: Store, job, worker: str) -> bool:
    return store.complete(job, worker, content=job.video_key(job.attempt), size=3, ran=RAN)


def test_a_job_and_its_states(store):
    job = submit(store, request_id="r", media=("image", "last_image"))
    assert (job.status, job.attempt, job.request) == ("queued", 0, REQUEST)
    assert job.media == ("image", "last_image")
    assert abs(job.created_at - time.time()) < 60
    claimed = store.claim("w", "tiny")
    assert (claimed.id, claimed.status, claimed.attempt) == (job.id, "in_progress", 1)
    assert store.claim("w", "tiny") is None
    assert store.renew(claimed, "w", 40) == "held" and store.get(job.id).progress == 40
    assert complete(store, claimed, "w")
    done = store.get(job.id)
    assert (done.status, done.progress, done.ran) == ("completed", 100, RAN)
    assert done.created_at <= done.started_at <= done.completed_at


def test_models_do_not_mix(store):
    submit(store)
    assert store.claim("w", "another") is None
    assert store.counts("another").queued == 0 and store.counts("tiny").queued == 1


def test_nothing_changes_a_finished_job(store):
    ways = {
        "completed": lambda job: complete(store, job, "w"),
        "failed": lambda job: store.fail(job, "w", JobError("generation_failed", "x")),
    }
    for status, finish in ways.items():
        submit(store)
        job = store.claim("w", "tiny")
        assert finish(job)
        before = store.get(job.id)
        assert before.status == status
        assert store.cancel(job.id) == before
        assert not complete(store, job, "w")
        assert not store.fail(job, "w", JobError("late", "late"))
        assert store.renew(job, "w", 1) == "lost"
        time.sleep(0.01)
        assert store.sweep() == 0 and store.get(job.id) == before


def test_a_lost_worker_is_replaced_once_and_then_the_job_fails(store):
    job = submit(store)
    younger = submit(store)
    first = store.claim("dead", "tiny")
    assert store.sweep() == 0  # its lease holds
    time.sleep(LEASE_S + 0.1)
    assert store.sweep() == 1 and store.get(job.id).status == "queued"
    second = store.claim("w", "tiny")
    assert (second.id, second.attempt) == (job.id, 2)  # before the younger one
    # The first worker was only slow: nothing it says counts any more.
    assert store.renew(first, "dead", 99) == "lost"
    assert not complete(store, first, "dead")
    assert not store.fail(first, "dead", JobError("x", "x"))
    assert store.renew(second, "w", 1) == "held"
    time.sleep(LEASE_S + 0.1)
    assert store.sweep() == 1
    lost = store.get(job.id)
    assert (lost.status, lost.error.code) == ("failed", "worker_lost")
    assert store.get(younger.id).status == "queued"


def test_a_slow_worker_that_was_not_missed_goes_on(store):
    submit(store)
    job = store.claim("slow", "tiny")
    time.sleep(LEASE_S + 0.1)
    assert store.renew(job, "slow", 5) == "held" and store.sweep() == 0
    assert complete(store, job, "slow")


def test_cancelling(store):
    waiting, running = submit(store), None
    store.cancel(waiting.id)
    assert store.get(waiting.id).error.code == "cancelled" and store.claim("w", "tiny") is None
    submit(store)
    running = store.claim("w", "tiny")
    store.cancel(running.id)
    assert store.renew(running, "w", 10) == "cancelled"
    assert not complete(store, running, "w")  # the user was told that it is cancelled
    time.sleep(LEASE_S + 0.1)
    assert store.sweep() == 1  # its worker died before it stopped
    assert store.get(running.id).error.code == "cancelled"
    assert store.cancel("video_" + "0" * 32) is None


def test_a_job_is_cancelled_while_it_is_given_back(url, store):
    """Its worker is lost, and the sweep comes between the two updates of `cancel`."""
    submit(store)
    job = store.claim("dead", "tiny")
    time.sleep(LEASE_S + 0.1)
    other = Store(url, lease_s=LEASE_S, attempts=2)
    swept = threading.Thread(target=other.sweep)

    @sa.event.listens_for(store._db._engine, "after_cursor_execute")
    def between(connection, cursor, statement, *_):
        if statement.startswith("UPDATE") and swept.ident is None:
            swept.start()
            swept.join(1.0)

    store.cancel(job.id)
    swept.join(30)
    other.sweep()
    other.close()
    found = store.get(job.id)
    assert found.status == "failed" and found.error.code == "cancelled"


def test_claims_and_ids_of_many_at_once(url, store):
    """Eight threads submit with four ids and claim: nothing twice, nothing lost, the bound kept."""
    barrier, claimed, refused, ids = threading.Barrier(8), [], [], set()

    def work(number: int) -> None:
        mine = Store(url, lease_s=30, attempts=2)
        barrier.wait()
        for round_ in range(5):
            key = f"r{round_}-{number % 4}"
            try:
                ids.add(submit(mine, request_id=key, limit=12).id)
            except ServiceError as error:
                refused.append(error)
        barrier.wait()
        while (job := mine.claim(f"w{number}", "tiny")) is not None:
            claimed.append(job.id)
        mine.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 12 and {error.code for error in refused} == {"queue_full"}
    assert Counter(claimed) == dict.fromkeys(ids, 1)


def test_no_text_of_a_client_makes_the_store_fail(store, tmp_path):
    service = VideoService(store, open_content(str(tmp_path)), "here", Limits())
    for after in ("\0", "x" * 9999, "video_" + "0" * 32):
        with pytest.raises(ServiceError, match="after names no video"):
            service.list(after=after, limit=1, newest_first=True)


def test_workers_are_known(store):
    assert store.description("here") is None
    store.register("a", "here", described(steps=2))
    store.register("b", "here", described(steps=3))
    store.register("b", "here", described(steps=4))
    assert store.description("here").steps == 4 and store.description("there") is None
    store.seen("a")
    assert store.description("here").steps == 2
    assert store.live_workers("here", 60) == 2 and store.live_workers("here", -1) == 0


def test_jobs_outlive_the_store(url):
    first = Store(url, lease_s=LEASE_S, attempts=2)
    job = submit(first)
    first.close()
    second = Store(url, lease_s=LEASE_S, attempts=2)
    assert second.get(job.id) == job
    second.close()


def test_a_full_database_loses_nothing(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite'}", lease_s=LEASE_S, attempts=2)
    job = submit(store)

    @sa.event.listens_for(store._db._engine, "begin")
    def no_more_pages(connection):
        connection.exec_driver_sql("PRAGMA max_page_count=1")  # as much as there is already

    with pytest.raises(sa.exc.OperationalError) as caught:
        for _ in range(200):
            submit(store, limit=1000)
    assert is_full(caught.value)
    kept, _ = store.list(after=None, limit=100, newest_first=False)
    assert kept[0] == job and all(found.status == "queued" for found in kept)
    store.close()


@pytest.mark.parametrize("bad", ["nonsense", "mysql+none://x", "mssql://x", "sqlite:///x.sqlite"])
def test_bad_databases_are_one_line(bad):
    with pytest.raises((InvalidInputError, ValueError), match="sqlite:////"):
        settings = ServeSettings(database=bad, content="/tmp/x")
        Store(settings.database, lease_s=1, attempts=1)
