"""Downloading a data set: afterwards it is there whole, or nothing of it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from bnviz import sources
from bnviz.files import NO_SPACE

TIMEOUT_S = 30.0
"""Without an answer for so long, a download has failed."""

WATCH_INTERVAL_S = 0.2

DISK_FACTOR = 3
"""Disk space needed, in downloads: the archive and the files in it."""


class FetchError(RuntimeError):
    """A data set that cannot be downloaded; the message says why and what to do."""


def fetch(
    dataset: str, folder: Path | None = None, report: Callable[[int], object] = lambda _: None
) -> Path:
    """Download a data set by torchvision's own class, unless it is there.

    Args:
        folder: where to; by default `bnviz.sources.default_cache()`, where it is looked for.
        report: called again and again with the bytes downloaded so far, from another thread.

    Returns:
        The folder, as `data.folder` names it.

    Raises:
        FetchError: no network, no space, nothing to download, or another process downloads it.
    """
    if not sources.download_size(dataset):
        known = ", ".join(name for name in sources.FILES if sources.download_size(name))
        raise FetchError(f"there is nothing to download for {dataset!r}; choose one of {known}")
    files, target = sources.FILES[dataset], folder or sources.default_cache()
    with _staging(dataset, target) as staging:
        _require_space(files, target)
        try:
            with _watching(staging, report):
                _download(dataset, staging)
            (target / files.folder).mkdir(parents=True, exist_ok=True)
            for name in files.md5:  # in the same file system, so each is there whole
                os.replace(staging / files.folder / name, target / files.folder / name)
        except (OSError, RuntimeError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise FetchError(_no_space(files, target)) from error
            why = " ".join(str(error).split()).rstrip(".")
            raise FetchError(
                f"cannot download {files.title}: {why}; check the network and try again, or get "
                "its files elsewhere and name their folder in data.folder"
            ) from error
    return target


def fetch_with_bar(dataset: str, folder: Path | None) -> Path:
    """`fetch`, showing its progress where stderr is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        size = sources.download_size(dataset)
        task = progress.add_task(dataset, total=size, visible=size > 0)
        path = fetch(dataset, folder, lambda done: progress.update(task, completed=done))
        progress.update(task, completed=size)
    return path


def downloaded_bytes(dataset: str, folder: Path | None = None) -> int:
    """How much a download, perhaps of another process, has got so far; 0 where none goes on."""
    return _archive_bytes(_staging_folder(dataset, folder or sources.default_cache()))


def _staging_folder(dataset: str, target: Path) -> Path:
    return target / f".fetching-{dataset}"


def _archive_bytes(staging: Path) -> int:
    """Bytes of the archives in a folder; what was unpacked of them does not count."""
    total = 0
    for path in staging.rglob("*.gz"):
        with contextlib.suppress(OSError):  # it has just been moved away
            total += path.stat().st_size
    return total


@contextmanager
def _staging(dataset: str, target: Path) -> Iterator[Path]:
    """An empty folder beside where the files will be, for this process alone; gone afterwards. One
    that a killed process left is cleared first."""
    staging = _staging_folder(dataset, target)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise FetchError(
            f"cannot write to {target}: {error.strerror}; choose a folder that can be written with "
            "--to or BNVIZ_CACHE"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with this process
        for leftover in staging.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BlockingIOError:
        title = sources.FILES[dataset].title
        raise FetchError(
            f"{title} is being downloaded by another process already; wait for it"
        ) from None
    finally:
        os.close(lock)


def _require_space(files: sources.Files, target: Path) -> None:
    if shutil.disk_usage(target).free < DISK_FACTOR * files.download_bytes:
        raise FetchError(_no_space(files, target))


def _no_space(files: sources.Files, target: Path) -> str:
    free = shutil.disk_usage(target).free / 1e6
    return (
        f"{target} has {free:,.0f} MB free, and downloading {files.title} takes up to "
        f"{DISK_FACTOR * files.download_bytes / 1e6:,.0f}; make space, or choose a folder on "
        "another disk with --to or BNVIZ_CACHE"
    )


@contextmanager
def _watching(staging: Path, report: Callable[[int], object]) -> Iterator[None]:
    """Report how much is there until the block ends. torchvision tells nobody but its own bar."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_INTERVAL_S):
            report(_archive_bytes(staging))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _download(dataset: str, staging: Path) -> None:
    """Get the archives, check their md5, unpack them and read them once."""
    from bnviz.images import is_whole, make_torchvision_importable

    make_torchvision_importable()
    from torchvision import datasets

    known = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[dataset]
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its own bar
            known(str(staging), download=True)
    finally:
        socket.setdefaulttimeout(patience)
    files = sources.FILES[dataset]
    for name, md5 in files.md5.items():
        if not is_whole(staging / files.folder / name, md5):
            raise RuntimeError(f"{name} is not what it should be (its md5 differs)")
