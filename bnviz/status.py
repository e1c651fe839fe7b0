"""Where a run stands: the content of its `status.json`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class State(StrEnum):
    """States of a run. LOST is derived (`bnviz.jobs.true_status`), never stored."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    DIVERGED = "DIVERGED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


UNFINISHED = frozenset({State.QUEUED, State.RUNNING, State.PAUSED})
"""States that a living process stands behind."""


class RunError(BaseModel):
    """Why a run failed."""

    type: str
    message: str
    traceback: str


class Status(BaseModel):
    """Times are seconds since the epoch (UTC); `steps_per_s` is a recent rate.

    `pid_started` is the start of the process in seconds after the boot named by `boot_id`, which no
    change of the clock alters.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    state: State
    step: int = Field(0, ge=0)
    steps: int = Field(ge=1)
    steps_per_s: float | None = None
    eta_s: float | None = None
    device: str | None = None
    pid: int | None = Field(None, ge=1)
    pid_started: float | None = None
    boot_id: str = ""
    submitted_at: float
    started_at: float | None = None
    updated_at: float
    finished_at: float | None = None
    summary: dict[str, Any] = {}
    error: RunError | None = None

    @property
    def test_accuracy(self) -> float | None:
        """The latest one; None before the first."""
        value = self.summary.get("test_accuracy")
        return float(value) if isinstance(value, int | float) else None
