"""A folder of links to libraries in the user's cache, from which only those libraries are loaded.

A process loads what lies there, and a loader looks for a library's dependencies beside it. So the
folder is compared with the list of links each time: any other entry, or a link to somewhere else,
and it is made anew. Links need no hashes, since they lead to the installed files themselves.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rainfusion_trt.errors import BackendUnavailableError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_log = logging.getLogger(__name__)
_private: dict[Path, Path] = {}  # folders of this process, by what each stands for


def link_folder(folder: Path, links: Mapping[str, Path]) -> Path:
    """A folder with these links and nothing else, that only this user can change.

    Parameters
    ----------
    folder : Path
        Its place in the cache, ours alone.
    links : mapping of str to Path
        Name -> file that it leads to.

    Returns
    -------
    Path
        `folder`; or, where the cache cannot be used, one that is removed with this process.

    Raises
    ------
    BackendUnavailableError
        There is no temporary folder either.
    """
    if _holds(folder, links):
        return folder
    try:
        _make_own(folder.parent)
        with (folder.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a folder that another process uses is not replaced
            if not _holds(folder, links):
                _replace(folder, links)
        return folder
    except OSError as error:
        if folder not in _private:
            _log.info("no links in %s (%s): using a temporary folder", folder, error.strerror)
            _private[folder] = _temporary(folder, links)
        return _private[folder]


def _holds(folder: Path, links: Mapping[str, Path]) -> bool:
    try:
        state = folder.lstat()
        found = {entry.name: str(entry.readlink()) for entry in folder.iterdir()}
    except OSError:  # not there, no folder, or an entry that is no link
        return False
    ours = state.st_uid == os.geteuid() and not state.st_mode & _OTHERS_WRITE
    wanted = {name: str(target) for name, target in links.items()}
    return stat.S_ISDIR(state.st_mode) and ours and found == wanted


def _make_own(folder: Path) -> None:
    """Make a folder in which nobody else can put another in a folder's place."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"{folder} belongs to somebody else")
    if state.st_mode & _OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(state.st_mode) & ~_OTHERS_WRITE)


def _replace(folder: Path, links: Mapping[str, Path]) -> None:
    """Put a new folder in the place of whatever is there, which is deleted."""
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=".links-", ignore_cleanup_errors=True
    ) as scratch:
        fresh = Path(scratch) / "new"
        _fill(fresh, links)
        if os.path.lexists(folder):
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)


def _temporary(folder: Path, links: Mapping[str, Path]) -> Path:
    try:
        scratch = Path(tempfile.mkdtemp(prefix="rainfusion-trt-links-"))
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        _fill(scratch / "links", links)
    except OSError as error:
        raise BackendUnavailableError(
            f"neither {folder} nor a temporary folder can be written ({error.strerror}): set "
            "RAINFUSION_TRT_CACHE to a folder of yours"
        ) from error
    return scratch / "links"


def _fill(folder: Path, links: Mapping[str, Path]) -> None:
    folder.mkdir(mode=0o700)
    for name, target in links.items():
        (folder / name).symlink_to(target)
