"""Looks at where a result will go, before the work for it starts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files.staging import staging_folder

_PROBE = ".rainfusion-probe-"


def check_file(path: Path, *, ours: Callable[[Path], bool], remedy: str = "") -> None:
    """Refuse a path to which no file can be written, or where one lies that is not ours.

    Parameters
    ----------
    path : Path
        The file to be written. Neither it nor its folder need exist.
    ours : callable
        Whether a file that is there was written by this package, and by nobody since.
    remedy : str
        Added to what a user can do about a file that is not.

    Raises
    ------
    InvalidInputError
        A folder, a link, a file of other origin, or a folder that cannot be written to.
    """
    with _errors_named(path):
        if path.is_symlink():
            raise InvalidInputError(f"output {path} is a link: name the file itself")
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise InvalidInputError(f"output {path} is {kind}: name a file")
        _check_name(path)
        if path.is_file() and not ours(path):
            raise InvalidInputError(
                f"output {path} exists, and is not as rainfusion-trt has written it: choose "
                f"another name or move it away{remedy}"
            )
        _check_parent(path)


def check_folder(path: Path) -> None:
    """Refuse a path where no folder can be put; what one holds that is there is not looked at.

    Raises
    ------
    InvalidInputError
        A file, a link, a mount, the working directory, or nothing can be written beside it.
    """
    with _errors_named(path):
        if path.is_symlink():
            raise InvalidInputError(f"output {path} is a link: name the folder itself")
        if path.exists() and not path.is_dir():
            raise InvalidInputError(f"output {path} is a file: name a folder")
        if path.resolve() == Path.cwd():
            raise InvalidInputError(f"output {path} is the working directory: name a folder in it")
        if path.is_mount():
            raise InvalidInputError(f"output {path} is a mount: name a folder in it")
        if path.name == "..":
            raise InvalidInputError(f"output {path} does not end in the name of a folder")
        _check_name(path)
        _check_parent(path)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInputError(f"output {path} cannot be written: {reason}") from error


def _check_name(path: Path) -> None:
    """Raise OSError for a name that is too long, also for that of the hidden folder beside it."""
    for name in (path, staging_folder(path)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            name.lstat()


def _check_parent(path: Path) -> None:
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        if folder.is_symlink():
            raise InvalidInputError(f"output {path}: {folder} is a link to nothing")
        folder = folder.parent
    if not folder.is_dir():
        raise InvalidInputError(f"output {path}: {folder} is not a folder")
    # Permissions alone do not tell: file systems are read-only, and root may write anywhere else.
    # Only an empty folder, which a look that was killed has left, can be removed by rmdir.
    for left in folder.glob(f"{_PROBE}*"):
        with contextlib.suppress(OSError):
            left.rmdir()
    probe = Path(tempfile.mkdtemp(prefix=_PROBE, dir=folder))
    with contextlib.suppress(FileNotFoundError):  # another process took it for left behind
        probe.rmdir()
