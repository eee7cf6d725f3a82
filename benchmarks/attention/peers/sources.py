"""Source trees of the peers, which the user brings: what they must hold, and which they are."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError

COMMIT_FILE = "COMMIT"  # of a folder without .git: its commit, in one line


@dataclass(frozen=True)
class Expected:
    """What a tree must hold.

    Attributes
    ----------
    option
        The command line's name of the folder.
    files
        Without which it is another project, or another state of this one.
    version
        A file and the pattern of the version in it.
    tested
        Commit and version that this was written for.
    """

    option: str
    files: tuple[str, ...]
    version: tuple[str, str]
    tested: str


FLASH_ATTENTION = Expected(
    "--flash-attention",
    ("hopper/flash_fwd_launch_template.h", "hopper/flash.h", "hopper/tile_size.h"),
    ("hopper/__init__.py", r'__version__ = "(3\.[\w.]+)"'),
    "commit 0251105a2fb1 (3.0.0)",
)
CUTLASS = Expected(
    "--cutlass",
    ("include/cutlass/cutlass.h", "include/cute/tensor.hpp"),
    (
        "include/cutlass/version.h",
        r"CUTLASS_MAJOR (4)\s+#define CUTLASS_MINOR (\d+)\s+#define CUTLASS_PATCH (\d+)",
    ),
    "commit 7127592069c2 (4.3.4)",
)
SAGE_ATTENTION = Expected(
    "--sage-attention",
    (
        "csrc/fused/fused.cu",
        "csrc/qattn/qk_int_sv_f8_cuda_sm90.cu",
        "sageattention/core.py",
        "sageattention/sm90_compile.py",
    ),
    ("setup.py", r"version='(2\.[\w.]+)'"),
    "commit d1a57a546c3d (2.2.0)",
)


@dataclass(frozen=True)
class Source:
    """A tree that holds what it must, and which one it is."""

    folder: Path
    version: str
    commit: str
    expected: Expected

    @property
    def label(self) -> str:
        return f"{self.version} ({self.commit})"


def source_of(expected: Expected, folder: Path) -> Source:
    """The tree in a folder.

    Raises
    ------
    InvalidInputError
        It is not what is expected, or does not say which commit it is.
    """
    missing = [
        name for name in (*expected.files, expected.version[0]) if not (folder / name).is_file()
    ]
    if missing:
        raise refusal(expected, folder, f"has no {missing[0]}")
    name, pattern = expected.version
    found = re.search(pattern, (folder / name).read_text(encoding="utf-8"))
    if found is None:
        raise refusal(expected, folder, f"names another version in {name}")
    return Source(folder.resolve(), ".".join(found.groups()), _commit(expected, folder), expected)


def refusal(expected: Expected, folder: Path, why: str) -> InvalidInputError:
    """The error that a tree is not as expected."""
    return InvalidInputError(f"{expected.option} {folder} {why}; tested with {expected.tested}")


def above(text: str, line: str) -> str | None:
    """What stands above the first line that begins so; None if there is none."""
    found = re.search(rf"^{re.escape(line)}", text, re.MULTILINE)
    return None if found is None else text[: found.start()]


def _commit(expected: Expected, folder: Path) -> str:
    if (folder / COMMIT_FILE).is_file():
        return (folder / COMMIT_FILE).read_text(encoding="utf-8").strip()
    if not (folder / ".git").exists():  # not that of a checkout around it
        raise refusal(
            expected, folder, f"is no git checkout: write its commit into {folder / COMMIT_FILE}"
        )
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    run = subprocess.run([*words, "--abbrev=12"], capture_output=True, text=True, check=False)
    if run.returncode:
        raise refusal(expected, folder, f"does not tell its commit: {run.stderr.strip()}")
    return run.stdout.strip()
