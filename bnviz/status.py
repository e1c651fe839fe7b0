"""Where a run stands: the content of its `status.json`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class State(StrEnum):
    """States of a run. LOST is derived (`bnviz.processes.true_status`), never stored."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    DIVERGED = "DIVERGED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


UNFINISHED = frozenset({State.QUEUED, State.RUNNING, State.PAUSED})
"""States from which a run goes on."""

AT_END = frozenset({State.COMPLETED, State.DIVERGED})
"""States of a run that has come to its end, from which it cannot go on."""

ACTIVE = frozenset({State.QUEUED, State.RUNNING})
"""States that change without anyone's doing."""

RESUMABLE = frozenset({State.PAUSED, State.LOST, State.FAILED, State.CANCELLED})
"""States from which a run goes on when it is resumed."""


Number = Annotated[float, Field(ge=-1e15, le=1e15)]
"""Times, rates and durations: anything else was not written by a worker, and cannot be shown."""

Count = Annotated[int, Field(ge=0, le=10**15)]


class RunError(BaseModel):
    """Why a run failed."""

    type: str
    message: str
    traceback: str


class Status(BaseModel):
    """Times are seconds since the epoch (UTC); `steps_per_s` is a recent rate.

    A QUEUED run without `pid` waits for a free slot; with one, it is starting. `pid_started` is the
    start of the process in seconds after the boot named by `boot_id`, which no change of the clock
    alters. `reason` says why a run was paused by something else than a request, or is LOST for
    another reason than a process being gone.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    state: State
    step: Count = 0
    steps: Annotated[Count, Field(ge=1)]
    steps_per_s: Number | None = None
    eta_s: Number | None = None
    device: str | None = None
    pid: int | None = Field(None, ge=1, le=2**31 - 1)
    pid_started: Number | None = None
    boot_id: str = ""
    submitted_at: Number
    queued_at: Number | None = None
    started_at: Number | None = None
    updated_at: Number
    finished_at: Number | None = None
    summary: dict[str, Any] = {}
    reason: str | None = None
    error: RunError | None = None

    @property
    def test_accuracy(self) -> float | None:
        """The latest one; None before the first."""
        value = self.summary.get("test_accuracy")
        return value if isinstance(value, float) and 0 <= value <= 1 else None
