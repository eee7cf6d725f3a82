"""What process groups say as they are made does not stand where scripts read the video's path."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch.distributed import device_mesh

from rainfusion_trt import ParallelConfig
from rainfusion_trt.parallel.standard_output import output_to_errors
from rainfusion_trt.parallel.team import Team
from tests.helpers.process_group import in_processes


def test_output_goes_to_errors_for_a_while(capfd):
    print("before")
    with output_to_errors():
        os.write(1, b"C++\n")
    print("behind")
    out, errors = capfd.readouterr()
    assert out == "before\nbehind\n" and errors == "C++\n"


def test_output_that_is_closed(capfd):
    kept = os.dup(1)
    try:
        os.close(1)
        with output_to_errors():
            pass
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    os.write(1, b"open")
    assert capfd.readouterr().out == "open"


def _joined(rank: int) -> bytes:
    """What stands on standard output once a process has joined, with groups that say something."""

    def loud(made):
        def call(*arguments, **named):
            os.write(1, b"connected\n")
            return made(*arguments, **named)

        return call

    dist.init_process_group = loud(dist.init_process_group)
    device_mesh.init_device_mesh = loud(device_mesh.init_device_mesh)
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.write(1, b"begins\n")
    Team.join(ParallelConfig(2), "cpu")
    return os.read(reading, 1000)


def test_groups_say_nothing_on_standard_output():
    assert in_processes(_joined, 2, group=False) == [b"begins\n"] * 2
