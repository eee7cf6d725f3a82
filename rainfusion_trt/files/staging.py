"""A hidden folder beside a target, in which it is made: whole or absent, by one process at a time.

The folder of ``model.onnx`` is ``.model.onnx.rainfusion``. It holds

* ``owner``, a file that says whose folder it is. Who works in it has a lock on that file, and so
  have the child processes that inherited it: what nobody holds, a killed process has left;
* ``new``, where things are made;
* ``old``, where those that are replaced wait until their successors are in place;
* ``moves``, which names the files that are being put in place.

The system frees the lock of a process however it ended, on every machine that shares the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError

_log = logging.getLogger(__name__)

_SUFFIX = ".rainfusion"
_OWNER = "owner"
_MARK = b"rainfusion-trt staging 1\n"
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # some network mounts


def staging_folder(target: Path) -> Path:
    """Path of the hidden folder of a target."""
    return target.with_name(f".{target.name}{_SUFFIX}")


@dataclass(frozen=True)
class Staging:
    """A staging folder that this process has locked.

    Attributes
    ----------
    target : Path
        What is made in it.
    lock : int
        File descriptor of the lock, for child processes to inherit.
    """

    target: Path
    lock: int

    @property
    def new(self) -> Path:
        """Folder for what is made."""
        return staging_folder(self.target) / "new"

    @property
    def old(self) -> Path:
        """Folder for what is replaced."""
        return staging_folder(self.target) / "old"

    @property
    def moves(self) -> Path:
        """File that says what the files put in place look like; appears whole."""
        return staging_folder(self.target) / "moves"

    def publish(self, *others: str) -> None:
        """Put the target in its place, after the files named `others`, which go with it.

        Of what is not in `new`, only the predecessor is taken away. The target goes first and comes
        last, so that it never stands beside files of another.
        """
        if not others and not self.target.is_dir():
            (self.new / self.target.name).replace(self.target)
            return
        names = (self.target.name, *others)
        made = {name: self.new / name for name in names if (self.new / name).exists()}
        draft = self.new / f".{self.moves.name}"
        draft.write_text(json.dumps({name: _stamps(path) for name, path in made.items()}))
        draft.replace(self.moves)
        for name in names:
            place = self.target.with_name(name)
            if os.path.lexists(place):
                place.rename(self.old / name)
        for name, path in reversed(made.items()):
            path.rename(self.target.with_name(name))

    def clean(self) -> None:
        """Empty the folder. A target that did not get to its place leaves its predecessor there."""
        if self.moves.exists() and (self.new / self.target.name).exists():
            for name, stamps in self._moved().items():
                place = self.target.with_name(name)
                if place.is_file() and _stamps(place) == stamps:
                    place.unlink()
            # The target last, as in `publish`.
            for item in sorted(self.old.iterdir(), key=lambda item: item.name == self.target.name):
                place = self.target.with_name(item.name)
                if not os.path.lexists(place):
                    item.rename(place)
        self.moves.unlink(missing_ok=True)
        for folder in (self.new, self.old):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)

    def _moved(self) -> dict[str, list[int]]:
        """What is being put in place; nothing is known if the machine went down just then."""
        try:
            moved = json.loads(self.moves.read_text(encoding="utf-8"))
        except ValueError:
            return {}
        return moved if isinstance(moved, dict) else {}

    def remove(self) -> None:
        """Remove the emptied folder; who waits for its lock sees that and makes another."""
        folder = staging_folder(self.target)
        with contextlib.suppress(FileNotFoundError):
            (folder / _OWNER).unlink()
        with contextlib.suppress(OSError):  # another process has come, or there is something else
            folder.rmdir()


def _stamps(path: Path) -> list[int]:
    """What tells a file that was moved from one that was changed or put there since."""
    state = path.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns]


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Staging]:
    """Make `target`, a file or a folder, in a hidden folder beside it that is removed in the end.

    The parent of the target is made. Waits for another process that makes the same target, and
    removes what killed ones have left beside it.

    Raises
    ------
    InvalidInputError
        The folder cannot be made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        stage = Staging(target, _lock(target))
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInputError(f"output {target} cannot be written: {reason}") from error
    try:
        stage.clean()
        stage.new.mkdir()
        stage.old.mkdir()
        try:
            yield stage
        finally:
            stage.clean()
            stage.remove()
    finally:
        os.close(stage.lock)


def remove_leftovers(folder: Path) -> None:
    """Remove staging folders of processes that were killed; put back what they had moved away."""
    for staged in sorted(folder.glob(f".*{_SUFFIX}")):
        if staged.is_symlink():
            continue
        try:
            lock = os.open(staged / _OWNER, _OPEN)
        except OSError:
            with contextlib.suppress(OSError):  # killed before it wrote anything
                staged.rmdir()
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(lock, staged) and _is_marked(lock, staged):
                _log.info("removing %s, which a run that was killed has left", staged)
                left = Staging(staged.with_name(staged.name[1 : -len(_SUFFIX)]), lock)
                left.clean()
                left.remove()
        except OSError as error:  # in use, of another user, or without locks
            _log.debug("%s stays: %s", staged, error)
        finally:
            os.close(lock)


def _lock(target: Path) -> int:
    """Make the folder and lock it; waits while another process has it."""
    folder = staging_folder(target)
    while True:
        try:
            _make_folder(folder)
            lock, created = _open(folder / _OWNER)
        except FileNotFoundError:  # who had the folder has just removed it
            continue
        try:
            _acquire(lock, target, created=created)
            if _is_there(lock, folder):
                if folder.is_symlink() or not _is_marked(lock, folder):
                    if created:
                        (folder / _OWNER).unlink()
                    raise InvalidInputError(
                        f"{folder} is in the way of output {target}, and is not of rainfusion-trt: "
                        "move it away, or choose another name"
                    )
                os.pwrite(lock, _MARK, 0)
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _make_folder(folder: Path) -> None:
    """Make a folder if nothing is there.

    Raises
    ------
    FileNotFoundError
        The folder of another process was there, and is gone.
    FileExistsError
        Something else is there.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        # One look, where `exist_ok=True` fails if the folder goes before its second.
        mode = folder.lstat().st_mode
        if not stat.S_ISDIR(mode) and not folder.is_dir():
            raise


def _open(path: Path) -> tuple[int, bool]:
    """A file descriptor, and whether the file was made for it."""
    try:
        return os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, _OPEN), False


def _acquire(lock: int, target: Path, *, created: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("another process is writing %s: waiting for it", target)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if not created:  # then its existence is the lock
            raise InvalidInputError(
                f"another process is writing {target}, or one was killed, which this file system "
                f"does not tell: if none is, remove {staging_folder(target)}"
            ) from error


def _is_there(lock: int, folder: Path) -> bool:
    """Whether a lock is on the file that is there, not on one that was removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock), (folder / _OWNER).lstat())
    except FileNotFoundError:
        return False


def _is_marked(lock: int, folder: Path) -> bool:
    """Whether a folder is ours: it says so, or there is nothing in it but an empty file."""
    content = os.pread(lock, len(_MARK) + 1, 0)
    return content == _MARK or (not content and len(list(folder.iterdir())) == 1)
