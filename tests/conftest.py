"""Fixtures of all tests: the plugin library, built once, and skips with a reason."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Processes that tests interrupt by SIGINT listen to it, though tests run in the background.

    A shell starts those with that signal ignored, which children inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """librainfusion_trt.so: the one RAINFUSION_TRT_LIBRARY names, else built from the checkout.

    RAINFUSION_CUDA_ARCHITECTURES=80-real makes the build several times faster.
    """
    from rainfusion_trt.plugin.build import build_plugin, find_library

    return find_library() if os.environ.get("RAINFUSION_TRT_LIBRARY") else build_plugin()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, which is faster for tiny tensors."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _reason_without_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA GPU here"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def _reason_without_tensorrt() -> str | None:
    from rainfusion_trt.engine.flavour import available_flavours

    return None if available_flavours() else "neither tensorrt nor tensorrt_rtx is importable"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; files with slow tests first.

    Workers take files in this order where scripts/test.sh tells xdist to keep it: one that takes
    minutes would leave the others without work at the end. The service in Ray is before all: it
    mostly waits, and has leases to renew that a compiler on all cores might keep it from.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_serve_ray.py", item.path not in slow))
    reasons = {"gpu": _reason_without_gpu, "tensorrt": _reason_without_tensorrt}
    for name, reason_of in reasons.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        reason = reason_of() if marked else None
        if reason is None:
            continue
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
