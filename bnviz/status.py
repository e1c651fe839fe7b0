"""Where a run stands: the content of its `status.json`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class State(StrEnum):
    """States of a run. LOST is derived (`bnviz.jobs.state_of`), never stored."""

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
    """Times are seconds since the epoch (UTC); `steps_per_s` is a recent rate."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: State
    step: int = 0
    steps: int
    steps_per_s: float | None = None
    eta_s: float | None = None
    device: str | None = None
    pid: int | None = None
    pid_started: float | None = None
    submitted_at: float
    started_at: float | None = None
    updated_at: float
    finished_at: float | None = None
    summary: dict[str, Any] = {}
    error: RunError | None = None
