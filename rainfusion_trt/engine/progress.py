"""Shows the progress of a build on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from rainfusion_trt.engine.messages import Event, PhaseFinished, PhaseStarted, StepDone


class BuildProgress:
    """One bar per phase that TensorRT is in, nested phases indented.

    Parameters
    ----------
    enabled : bool
        False shows nothing; neither does an output that is no terminal.
    """

    def __init__(self, enabled: bool = True, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
        console = console or Console(stderr=True)
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not enabled or not console.is_terminal,
        )
        self._open: dict[str, tuple[TaskID, int]] = {}  # phase -> bar, depth

    def __enter__(self) -> BuildProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases that have started and not finished."""
        return tuple(self._open)

    def __call__(self, event: Event) -> None:
        """Take one event of the build process."""
        if isinstance(event, PhaseStarted):
            depth = self._open[event.parent][1] + 1 if event.parent in self._open else 0
            title = "  " * depth + event.phase
            self._open[event.phase] = (self._progress.add_task(title, total=event.steps), depth)
        elif isinstance(event, StepDone) and event.phase in self._open:
            self._progress.update(self._open[event.phase][0], completed=event.step + 1)
        elif isinstance(event, PhaseFinished) and event.phase in self._open:
            self._progress.remove_task(self._open.pop(event.phase)[0])
