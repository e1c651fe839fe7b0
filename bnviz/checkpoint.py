"""Checkpoints: the state of a training on disk, so that it can go on after anything."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from bnviz.files import replace_aside, sync


class CheckpointError(RuntimeError):
    """Checkpoints are there, but none can be read; the message says what to do."""


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, prove that it can be read, and only then put it in place.

    The one that it replaces is kept as `previous(path)`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)

    def write_and_prove(aside: Path) -> None:
        aside.write_bytes(buffer.getvalue())
        sync(aside)
        _load(aside)
        if path.exists():
            os.replace(path, previous(path))

    replace_aside(path, write_and_prove, durable=True)


def load(path: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, on the CPU; None where there is none.

    Raises:
        CheckpointError: there are files, but none can be read.
    """
    present = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    for candidate in present:
        try:
            return _load(candidate)
        except Exception:  # a damaged file makes torch raise nearly anything
            continue
    if present:
        names = " and ".join(candidate.name for candidate in present)
        raise CheckpointError(
            f"cannot read {names} in {path.parent}; retry the run to start it anew"
        )
    return None


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:  # torch does not look at the checksums
            raise ValueError(f"{path} is damaged")
    with warnings.catch_warnings(action="ignore"):  # about files that are none of ours
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code of the file
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path} is not a checkpoint")
    return state
