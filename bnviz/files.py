"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk, and of a user's full share of it."""


def version(path: Path) -> tuple[int, int, int]:
    """Another for each content of a file that is always replaced. Raises OSError."""
    now = os.stat(path)
    return now.st_ino, now.st_mtime_ns, now.st_size


def write_aside(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part of it.

    Args:
        durable: come back only when a power cut can no longer undo it.
    """
    data = content.encode() if isinstance(content, str) else content
    replace_aside(path, lambda aside: aside.write_bytes(data), durable=durable)


def replace_aside(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """As `write_aside`, for content that `write` puts into the file it is given."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        if durable:
            sync(aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
