"""A PostgreSQL server of its own for a test session, from Debian's package ``postgresql``."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_PLACES = "/usr/lib/postgresql/*/bin/initdb"


def _programs() -> Path:
    found = sorted(Path("/").glob(_PLACES.lstrip("/")))
    on_path = shutil.which("initdb")
    if found or on_path:
        return found[-1].parent if found else Path(str(on_path)).parent
    reason = "no PostgreSQL server here: apt-get install postgresql"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _user() -> str | None:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database; the server ends with the context."""
    programs, user = _programs(), _user()
    with tempfile.TemporaryDirectory(prefix="rainfusion-pg-") as folder:
        if user is not None:
            shutil.chown(folder, user)
        data = str(Path(folder) / "data")
        common = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
        auth = ("-U", "tester", "-A", "trust", "--no-sync", "-D", data)
        subprocess.run([programs / "initdb", *auth], check=True, **common)
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        log = str(Path(folder) / "log")
        start = [programs / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start"]
        subprocess.run(start, check=True, **common)
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, **common)
