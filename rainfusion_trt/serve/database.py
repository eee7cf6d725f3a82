"""The tables of the service, in SQLite or PostgreSQL, and transactions on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from rainfusion_trt.errors import InvalidInputError

_WAIT_S = 30.0  # for another's write to SQLite
_GATE = 0x7261696E  # of PostgreSQL's advisory lock: writers that count before they insert

metadata = sa.MetaData()

# The names end in the version of their columns: another version finds its own tables or none.
jobs = sa.Table(
    "rainfusion_jobs_2",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(200), unique=True),
    sa.Column("media", sa.String(200), nullable=False),  # names, with commas between them
    sa.Column("progress", sa.Integer, nullable=False, default=0),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("worker", sa.String(200)),
    sa.Column("lease_until", sa.Double),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    sa.Column("content", sa.String(200)),
    sa.Column("content_bytes", sa.BigInteger),
    sa.Column("ran", sa.Text),
    sa.Index("rainfusion_jobs_2_by_status", "status", "model", "number"),
    sqlite_autoincrement=True,  # a number is never given again
)
workers = sa.Table(
    "rainfusion_workers_2",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("deployment", sa.String(64), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)


class Database:
    """Transactions on the tables, which are made if need be.

    Parameters
    ----------
    url
        Of SQLAlchemy.

    Raises
    ------
    InvalidInputError
        It is no URL, its driver is not installed, or it is neither SQLite nor PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url, pool_pre_ping=True, **_options(url))
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
            raise InvalidInputError(
                f"the database cannot be used ({error}): give sqlite:////path or "
                "postgresql+psycopg://user@host/name"
            ) from error
        self._dialect = self._engine.dialect.name
        if self._dialect == "sqlite":
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        elif self._dialect != "postgresql":
            raise InvalidInputError(
                f"the database is {self._dialect}: give one of SQLite or PostgreSQL"
            )
        with self.write(gate=True) as transaction:
            metadata.create_all(transaction)

    @contextmanager
    def write(self, *, gate: bool = False) -> Iterator[sa.Connection]:
        """A transaction that writes, committed at the end of the context.

        Parameters
        ----------
        gate
            One at a time of those who ask for it, so that what one counts stays true.
        """
        writer = self._engine.connect().execution_options(rainfusion_writes=True)
        with writer as connection, connection.begin():
            if gate and self._dialect == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_GATE)))
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that reads."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def now(self, connection: sa.Connection) -> float:
        """Seconds since 1970 by the database's clock, which all processes share."""
        if self._dialect == "sqlite":
            clock = sa.text("SELECT (julianday('now') - 2440587.5) * 86400.0")
        else:
            clock = sa.text("SELECT extract(epoch FROM clock_timestamp())")
        return float(connection.execute(clock).scalar_one())

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


def _options(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": _WAIT_S}} if url.startswith("sqlite") else {}


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin in `_begin_sqlite` alone
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A reader that turned writer could fail where another wrote meanwhile.
    writes = connection.get_execution_options().get("rainfusion_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
