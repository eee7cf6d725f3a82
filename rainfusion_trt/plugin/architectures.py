"""CUDA architectures as CMake writes them, and the GPUs that code compiled for them runs on."""

from __future__ import annotations

import re
import shutil
import subprocess

DEFAULT_ARCHITECTURES = "80-real;90;120"  # those of CMakeLists.txt

_ARCHITECTURE = re.compile(r"(\d+)([af]?)(-real|-virtual)?")


def native_capabilities() -> tuple[int, ...]:
    """Compute capabilities of the GPUs in this machine, such as 90; none without a GPU."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return ()
    query = [nvidia_smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # the driver's tools are installed, but there is no driver
    found = {line.strip().replace(".", "") for line in output.stdout.splitlines()}
    return tuple(sorted(int(capability) for capability in found if capability.isdigit()))


def machine_code_for(capabilities: tuple[int, ...]) -> str | None:
    """The architectures that give these GPUs machine code of their own; None for no GPU."""
    return ";".join(f"{capability}-real" for capability in capabilities) or None


def run_on(architectures: str, capability: int, *, ptx: bool = False) -> bool:
    """Whether code compiled for `architectures` runs on a GPU of this compute capability.

    The same rules as ``kernels/common/gpu_targets.h``.

    Parameters
    ----------
    architectures : str
        As CMake writes them, for example ``"80-real;90"``.
    capability : int
        Compute capability as a number, such as 86.
    ptx : bool
        Whether PTX will do, which the driver compiles when it loads the library.
    """
    return any(_runs_on(name, capability, ptx) for name in architectures.split(";"))


def _runs_on(architecture: str, capability: int, ptx: bool) -> bool:
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        return False
    number, suffix, kind = int(match[1]), match[2], match[3]
    if kind == "-virtual" and not ptx:
        return False
    if suffix == "a":  # that GPU alone
        return capability == number
    if number // 10 == capability // 10:  # later GPUs of its major version
        return capability >= number
    return ptx and kind != "-real" and not suffix and capability > number
