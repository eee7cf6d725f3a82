"""The build process: its messages, its progress, and its deaths.

The workers here are small Python programs that speak the worker's language, so that crashes and
garbage can be provoked; builds by the real one are in test_engine_build.py.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rainfusion_trt.engine.messages import (
    BuildRequest,
    Built,
    LogLine,
    PhaseFinished,
    PhaseStarted,
    StepDone,
    parse_event,
)
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.progress import BuildProgress
from rainfusion_trt.engine.recipe import BuilderSettings
from rainfusion_trt.errors import EngineBuildError

BUILT = Built(plugin_layers=1, inputs=(), outputs=(), engine_size=3, engine_sha256="x")


@pytest.fixture
def request_() -> BuildRequest:
    return BuildRequest(
        onnx=Path("m.onnx"),
        plugin=Path("p.so"),
        plan=Path("engine.plan"),
        flavour="tensorrt_rtx",
        targets=("sm80",),
        profiles={},
        builder=BuilderSettings(),
        attention_nodes=("a",),
    )


def worker(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def says(*events) -> str:
    lines = [event if isinstance(event, str) else event.model_dump_json() for event in events]
    return f"import sys; sys.stdin.read(); print({chr(10).join(lines)!r}, flush=True)\n"


def test_request_arrives_and_result_returns(request_):
    program = (
        "import json, sys; request = json.load(sys.stdin)\n"
        "assert request['targets'] == ['sm80'], request\n" + says(BUILT).split("; ", 2)[2]
    )
    assert run_worker(request_, command=worker(program)) == BUILT


def test_events_are_passed_on(request_):
    events = [
        PhaseStarted(phase="build", parent=None, steps=2),
        StepDone(phase="build", step=0),
        LogLine(severity="warning", text="mind the gap"),
        PhaseFinished(phase="build"),
        BUILT,
    ]
    seen = []
    run_worker(request_, seen.append, worker(says(*events)))
    assert seen == events


def test_failure_carries_the_last_words(request_):
    lines = [LogLine(severity="error", text=f"line {index}") for index in range(20)]
    program = says(*lines, '{"event": "failed", "text": "no engine"}') + "sys.exit(1)"
    with pytest.raises(EngineBuildError) as error:
        run_worker(request_, command=worker(program))
    message = str(error.value)
    assert message.startswith("no engine\n")
    assert "line 19" in message and "line 8" in message and "line 7" not in message


def test_crash_names_the_signal_and_standard_error(request_):
    program = (
        says(LogLine(severity="error", text="Internal error"))
        + "import os; os.write(2, b'terminate called\\n'); os.abort()"
    )
    with pytest.raises(EngineBuildError, match="ended by SIGABRT") as error:
        run_worker(request_, command=worker(program))
    assert "Internal error" in str(error.value) and "terminate called" in str(error.value)


def test_crash_after_the_result_is_a_failure(request_):
    with pytest.raises(EngineBuildError, match="ended by SIGABRT"):
        run_worker(request_, command=worker(says(BUILT) + "import os; os.abort()"))


def test_end_without_a_word(request_):
    with pytest.raises(EngineBuildError, match="ended with exit code 3"):
        run_worker(request_, command=worker("import sys; sys.exit(3)"))


def test_foreign_output_is_kept_as_log(request_):
    program = says("Segmentation is fun", '{"event": "unknown"}') + "sys.exit(1)"
    with pytest.raises(EngineBuildError, match="Segmentation is fun"):
        run_worker(request_, command=worker(program))


def test_process_is_ended_when_the_display_fails(request_):
    def fail(event):
        raise KeyboardInterrupt

    program = says(StepDone(phase="a", step=1)) + "import time; time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_worker(request_, fail, worker(program))


def test_events_survive_json():
    event = PhaseStarted(phase='a "b"', parent="c", steps=3)
    assert parse_event(event.model_dump_json()) == event


def test_progress_shows_nested_phases():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with BuildProgress(console=console) as progress:
        progress(PhaseStarted(phase="Building engine", parent=None, steps=6))
        progress(PhaseStarted(phase="Timing", parent="Building engine", steps=4))
        progress(StepDone(phase="Timing", step=2))
    text = console.file.getvalue()
    assert "  Timing" in text and "3/4" in text and "0/6" in text


def test_progress_closes_phases():
    with BuildProgress(enabled=False) as progress:
        progress(PhaseStarted(phase="Building engine", parent=None, steps=6))
        progress(PhaseStarted(phase="Timing", parent="Building engine", steps=4))
        assert progress.phases == ("Building engine", "Timing")
        progress(PhaseFinished(phase="Timing"))
        progress(StepDone(phase="Timing", step=3))  # late, from another thread of TensorRT
        assert progress.phases == ("Building engine",)


def test_no_progress_where_nobody_looks():
    console = Console(file=io.StringIO(), force_terminal=False)
    with BuildProgress(console=console) as progress:
        progress(PhaseStarted(phase="Building engine", parent=None, steps=6))
    assert console.file.getvalue() == ""
