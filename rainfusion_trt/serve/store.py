"""The store of jobs: every change is one transaction, and none changes a finished job.

A worker *claims* a job: the job is `in_progress`, its attempt is counted, and the worker has a
lease that it renews. Whatever the worker says later carries attempt and name and changes nothing
once the job is another's. A lease that ran out is found by `sweep`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from rainfusion_trt.serve.database import Database, jobs, workers
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.jobs import CANCELLED, WORKER_LOST, Job, JobError
from rainfusion_trt.serve.worker import GenerationRequest, ModelDescription, Ran

_FORGOTTEN_S = 86400.0  # after which a worker that was not seen is no longer listed
_RETRY_S = 10  # advice where the queue is full

_TURN = "/"  # between the name of a worker and the id of a turn

Hold = Literal["held", "cancelled", "lost"]


@dataclass(frozen=True)
class Counts:
    """Jobs of a model by status, and the age in seconds of the oldest that waits."""

    queued: int
    in_progress: int
    completed: int
    failed: int
    oldest_queued_s: float


class Store:
    """Jobs in a database.

    Parameters
    ----------
    url : str
        See `Database`.
    lease_s : float
        How long a claim holds without being renewed.
    attempts : int
        How often a job may be started.
    """

    def __init__(self, url: str, *, lease_s: float, attempts: int) -> None:
        self._db = Database(url)
        self.lease_s = lease_s
        self._attempts = attempts

    def close(self) -> None:
        """Close its connections."""
        self._db.close()

    # -- the door's side ------------------------------------------------------------------------

    def submit(
        self,
        job_id: str,
        model: str,
        request: GenerationRequest,
        *,
        fingerprint: str,
        request_id: str | None = None,
        media: Collection[str] = (),
        limit: int,
    ) -> tuple[Job, bool]:
        """Put a job into the queue; the job of that `request_id`, and False, if there is one.

        Raises
        ------
        ServiceError
            `limit` jobs wait already, or `request_id` belongs to another request.
        """
        with self._db.write(gate=True) as transaction:
            if request_id is not None:
                query = sa.select(jobs).where(jobs.c.request_id == request_id)
                found = transaction.execute(query).one_or_none()
                if found is not None:
                    if found.fingerprint != fingerprint:
                        raise ServiceError(
                            f"request id {request_id!r} belongs to another request: repeat that "
                            "one, or take a new id",
                            status=409,
                            code="idempotency_conflict",
                            param="request_id",
                        )
                    return _job(found), False
            waiting = sa.select(sa.func.count()).where(
                jobs.c.status == "queued", jobs.c.model == model
            )
            queued = transaction.execute(waiting).scalar_one()
            if queued >= limit:
                raise ServiceError(
                    f"the queue is full ({queued} jobs wait): try again later",
                    status=429,
                    code="queue_full",
                    retry_after=_RETRY_S,
                )
            transaction.execute(
                sa.insert(jobs).values(
                    id=job_id,
                    model=model,
                    status="queued",
                    request=request.model_dump_json(),
                    fingerprint=fingerprint,
                    request_id=request_id,
                    media=",".join(media),
                    created_at=self._db.now(transaction),
                )
            )
            return self._get(transaction, job_id), True

    def find(self, request_id: str, fingerprint: str) -> Job | None:
        """The job of a request that came before, if it is the same request."""
        query = sa.select(jobs).where(
            jobs.c.request_id == request_id, jobs.c.fingerprint == fingerprint
        )
        with self._db.read() as transaction:
            row = transaction.execute(query).one_or_none()
        return None if row is None else _job(row)

    def get(self, job_id: str) -> Job | None:
        """A job; None if there is none of that id."""
        with self._db.read() as transaction:
            row = transaction.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        return None if row is None else _job(row)

    def list(self, *, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """Up to `limit` jobs in the order they came, and whether more follow.

        Parameters
        ----------
        after
            Id of the last job of the page before.

        Raises
        ------
        ServiceError
            There is no job `after`.
        """
        number = jobs.c.number
        query = sa.select(jobs).order_by(number.desc() if newest_first else number)
        with self._db.read() as transaction:
            if after is not None:
                of = sa.select(number).where(jobs.c.id == after)
                last = transaction.execute(of).scalar_one_or_none()
                if last is None:
                    raise no_page_after()
                query = query.where(number < last if newest_first else number > last)
            rows = transaction.execute(query.limit(limit + 1)).all()
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, job_id: str) -> Job | None:
        """Fail a job that waits; ask the worker of one that runs to stop; leave a finished one."""
        with self._db.write() as transaction:
            mine = jobs.c.id == job_id
            # Locked first: one that `sweep` gives back between the two updates would miss both.
            transaction.execute(sa.select(jobs.c.id).where(mine).with_for_update())
            transaction.execute(
                sa.update(jobs)
                .where(mine, jobs.c.status == "queued")
                .values(**_cancelled(), completed_at=self._db.now(transaction))
            )
            transaction.execute(
                sa.update(jobs)
                .where(mine, jobs.c.status == "in_progress")
                .values(cancel_requested=True)
            )
            row = transaction.execute(sa.select(jobs).where(mine)).one_or_none()
        return None if row is None else _job(row)

    def delete(self, job_id: str) -> bool:
        """Forget a finished job; False if it is not there, or not finished."""
        with self._db.write() as transaction:
            finished = jobs.c.status.in_(("completed", "failed"))
            done = transaction.execute(sa.delete(jobs).where(jobs.c.id == job_id, finished))
            return done.rowcount == 1

    def counts(self, model: str) -> Counts:
        """Of the jobs of a model."""
        query = (
            sa.select(jobs.c.status, sa.func.count(), sa.func.min(jobs.c.created_at))
            .where(jobs.c.model == model)
            .group_by(jobs.c.status)
        )
        with self._db.read() as transaction:
            now = self._db.now(transaction)
            rows = {status: (n, first) for status, n, first in transaction.execute(query)}
        numbers = {
            name: rows.get(name, (0,))[0]
            for name in ("queued", "in_progress", "completed", "failed")
        }
        oldest = max(0.0, now - rows["queued"][1]) if "queued" in rows else 0.0
        return Counts(**numbers, oldest_queued_s=oldest)

    def unfinished(self, model: str) -> int:
        """Jobs of a model that wait or run."""
        wanted = jobs.c.status.in_(("queued", "in_progress")) & (jobs.c.model == model)
        with self._db.read() as transaction:
            return transaction.execute(sa.select(sa.func.count()).where(wanted)).scalar_one()

    def running(self) -> set[str]:
        """The turns whose jobs run, by their ids: their worker has given a sign of life.

        See `holder`. A turn that was among them and is not any more has finished its job or hangs.
        """
        query = sa.select(jobs.c.worker).where(jobs.c.status == "in_progress")
        with self._db.read() as transaction:
            live = query.where(jobs.c.lease_until >= self._db.now(transaction))
            return {name.partition(_TURN)[2] for name in transaction.execute(live).scalars()}

    def sweep(self) -> int:
        """See to the jobs whose worker gave no sign of life; how many there were.

        A job goes back into the queue, to its old place. One that was started as often as it may
        be, fails; so does one that was to be cancelled.
        """
        with self._db.write() as transaction:
            now = self._db.now(transaction)
            dead = (jobs.c.status == "in_progress") & (jobs.c.lease_until < now)
            lost = {
                "status": "failed",
                "completed_at": now,
                "error_code": WORKER_LOST,
                "error_message": f"its worker was lost {self._attempts} times: make it again",
            }
            again = {"status": "queued", "progress": 0, "started_at": None, "worker": None}
            wanted = dead & ~jobs.c.cancel_requested  # also if that came after the first update
            changes = (
                (dead & jobs.c.cancel_requested, {**_cancelled(), "completed_at": now}),
                (wanted & (jobs.c.attempt >= self._attempts), lost),
                (wanted, again),
            )
            done = [transaction.execute(sa.update(jobs).where(w).values(**v)) for w, v in changes]
        return sum(result.rowcount for result in done)

    # -- the worker's side ----------------------------------------------------------------------

    def claim(self, worker: str, model: str) -> Job | None:
        """The oldest job of a model that waits, for `worker` from now on; None if none waits."""
        oldest = (
            sa.select(jobs.c.id)
            .where(jobs.c.status == "queued", jobs.c.model == model)
            .order_by(jobs.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)  # left out on SQLite, where one writes at a time
        )
        with self._db.write() as transaction:
            job_id = transaction.execute(oldest).scalar_one_or_none()
            if job_id is None:
                return None
            now = self._db.now(transaction)
            claimed = transaction.execute(
                sa.update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status == "queued")
                .values(
                    status="in_progress",
                    attempt=jobs.c.attempt + 1,
                    worker=worker,
                    started_at=now,
                    lease_until=now + self.lease_s,
                    progress=0,
                )
            )
            return self._get(transaction, job_id) if claimed.rowcount == 1 else None

    def renew(self, job: Job, worker: str, progress: int) -> Hold:
        """Renew the lease of a claimed job and note its progress; what became of the claim."""
        with self._db.write() as transaction:
            lease = self._db.now(transaction) + self.lease_s
            changed = transaction.execute(
                sa.update(jobs)
                .where(_held(job, worker))
                .values(lease_until=lease, progress=progress)
            )
            if changed.rowcount != 1:
                return "lost"
            asked = sa.select(jobs.c.cancel_requested).where(jobs.c.id == job.id)
            return "cancelled" if transaction.execute(asked).scalar_one() else "held"

    def complete(self, job: Job, worker: str, *, content: str, size: int, ran: Ran) -> bool:
        """Finish a claimed job; False if it is not the worker's any more, or to be cancelled."""
        wanted = _held(job, worker) & ~jobs.c.cancel_requested
        values = {
            "status": "completed",
            "progress": 100,
            "content": content,
            "content_bytes": size,
            "ran": ran.model_dump_json(),
        }
        return self._finish(wanted, values)

    def fail(self, job: Job, worker: str, error: JobError) -> bool:
        """Fail a claimed job; False if it is not the worker's any more."""
        values = {"status": "failed", "error_code": error.code, "error_message": error.message}
        return self._finish(_held(job, worker), values)

    def _finish(self, wanted: Any, values: dict[str, Any]) -> bool:
        with self._db.write() as transaction:
            now = self._db.now(transaction)
            change = sa.update(jobs).where(wanted).values(**values, completed_at=now)
            return transaction.execute(change).rowcount == 1

    # -- workers --------------------------------------------------------------------------------

    def register(self, worker: str, deployment: str, description: ModelDescription) -> None:
        """Note that a worker of a deployment is there, and what it makes."""
        with self._db.write(gate=True) as transaction:
            now = self._db.now(transaction)
            transaction.execute(
                sa.delete(workers).where(
                    (workers.c.name == worker) | (workers.c.seen_at < now - _FORGOTTEN_S)
                )
            )
            text = description.model_dump_json()
            row = {"name": worker, "deployment": deployment, "description": text, "seen_at": now}
            transaction.execute(sa.insert(workers).values(**row))

    def seen(self, worker: str) -> None:
        """Note that a worker is still there."""
        with self._db.write() as transaction:
            now = self._db.now(transaction)
            mine = sa.update(workers).where(workers.c.name == worker)
            transaction.execute(mine.values(seen_at=now))

    def description(self, deployment: str) -> ModelDescription | None:
        """What the workers of a deployment make, by the one seen last; None before the first."""
        query = (
            sa.select(workers.c.description)
            .where(workers.c.deployment == deployment)
            .order_by(workers.c.seen_at.desc())
            .limit(1)
        )
        with self._db.read() as transaction:
            text = transaction.execute(query).scalar_one_or_none()
        return None if text is None else ModelDescription.model_validate_json(text)

    def live_workers(self, deployment: str, within_s: float) -> int:
        """How many workers of a deployment were seen within so many seconds."""
        with self._db.read() as transaction:
            since = self._db.now(transaction) - within_s
            live = (workers.c.deployment == deployment) & (workers.c.seen_at >= since)
            return transaction.execute(sa.select(sa.func.count()).where(live)).scalar_one()

    def _get(self, transaction: sa.Connection, job_id: str) -> Job:
        return _job(transaction.execute(sa.select(jobs).where(jobs.c.id == job_id)).one())


def holder(worker: str, turn: str) -> str:
    """The name under which a worker claims a job for one of a door's turns."""
    return f"{worker}{_TURN}{turn}"


def _held(job: Job, worker: str) -> Any:
    """The condition that a claim still holds."""
    return (
        (jobs.c.id == job.id)
        & (jobs.c.status == "in_progress")
        & (jobs.c.attempt == job.attempt)
        & (jobs.c.worker == worker)
    )


def _cancelled() -> dict[str, Any]:
    return {
        "status": "failed",
        "error_code": CANCELLED,
        "error_message": "it was cancelled",
    }


def _job(row: Any) -> Job:
    columns = row._mapping
    alike = (
        *("number", "id", "model", "status", "request_id", "progress", "attempt"),
        *("cancel_requested", "created_at", "started_at", "completed_at", "content"),
        "content_bytes",
    )
    failed = row.error_code is not None
    return Job(
        **{name: columns[name] for name in alike},
        request=GenerationRequest.model_validate_json(row.request),
        media=tuple(filter(None, row.media.split(","))),
        error=JobError(row.error_code, row.error_message) if failed else None,
        ran=None if row.ran is None else Ran.model_validate_json(row.ran),
    )


def no_page_after() -> ServiceError:
    """The error of a list that begins after a job that is not there."""
    message = "after names no video: give the id of one"
    return ServiceError(message, code="not_found", param="after")


def cancelled() -> JobError:
    """The error of a cancelled job."""
    values = _cancelled()
    return JobError(values["error_code"], values["error_message"])
