"""Which GPUs run what was compiled for CMake's architectures: CUDA's rules of compatibility."""

from __future__ import annotations

import pytest

from rainfusion_trt.plugin.architectures import machine_code_for, run_on


@pytest.mark.parametrize(
    ("architectures", "machine_code", "with_ptx"),  # of the GPUs below
    [
        ("80-real", {80, 86, 89}, {80, 86, 89}),
        ("86", {86, 89}, {86, 89, 90, 100, 103, 120}),
        ("80-virtual", set(), {80, 86, 89, 90, 100, 103, 120}),
        ("90a-real", {90}, {90}),
        ("90a", {90}, {90}),
        ("100a-real", {100}, {100}),
        ("100f-real", {100, 103}, {100, 103}),
        ("100f", {100, 103}, {100, 103}),
        ("80-real;90", {80, 86, 89, 90}, {80, 86, 89, 90, 100, 103, 120}),
        ("80-real;90;120", {80, 86, 89, 90, 120}, {80, 86, 89, 90, 100, 103, 120}),
        ("native", set(), set()),
    ],
)
def test_gpus_that_run_it(architectures, machine_code, with_ptx):
    gpus = (75, 80, 86, 89, 90, 100, 103, 120)
    assert {gpu for gpu in gpus if run_on(architectures, gpu)} == machine_code
    assert {gpu for gpu in gpus if run_on(architectures, gpu, ptx=True)} == with_ptx


def test_machine_code_for_what_is_there():
    assert machine_code_for((80, 90)) == "80-real;90-real"
    assert machine_code_for(()) is None
