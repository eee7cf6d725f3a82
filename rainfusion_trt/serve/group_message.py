"""What the processes of a `GroupWorker` say to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a process says: a step, or how its work ended.

    Attributes
    ----------
    step
        Steps that are done, of how many; None at the end.
    description, ran
        JSON of the first process: once it is ready, and of a video.
    error
        Why it failed, in one line where that is a refusal.
    refusal, memory, consequence
        Whether the error is one of this package, of memory, or another process's.
    fault
        Why this process can make no more clips; None where it can, also after an error.
    """

    step: tuple[int, int] | None = None
    description: str | None = None
    ran: str | None = None
    error: str | None = None
    refusal: bool = False
    memory: bool = False
    consequence: bool = False
    fault: str | None = None
