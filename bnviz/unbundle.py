"""Opening a bundle (`bnviz.bundle`): importing runs from a zip file.

All that a zip file says is a claim: it is unpacked into a hidden folder and checked there in full.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic import ValidationError

from bnviz import bundle
from bnviz.about import About
from bnviz.bundle import BELONGS, BundleError, check_part, require
from bnviz.files import sync
from bnviz.parts import DAMAGED
from bnviz.queue import MIN_FREE_BYTES, cannot_write, locked
from bnviz.schema import TABLES
from bnviz.store import Run, StoreError, write_status


def unpack(zip_file: Path | BinaryIO, root: Path, max_bytes: int = bundle.MAX_BYTES) -> list[str]:
    """Import the runs of a zip file, all or none; returns their ids. Nothing is started.

    Args:
        max_bytes: what the files may take when unpacked.

    Raises:
        BundleError: not a bundle, damaged, too large, with anything in it that does not belong
            there, a run that is there already, or no space.
        StoreError: the root cannot be written.
    """
    with contextlib.ExitStack() as opened:
        with _damage_in_words():
            if isinstance(zip_file, Path):
                zip_file = opened.enter_context(open(zip_file, "rb"))
            archive = opened.enter_context(ZipFile(_Bounded(zip_file)))
        bundle.check_size(archive.infolist(), max_bytes)
        _check_members(archive.infolist())
        run_ids = _read_manifest(archive)
        _refuse_known(root, run_ids)
        try:
            with _staging(root) as staging:
                _extract(archive, staging)
                for run_id in run_ids:
                    _check_run(staging / run_id)
                _place(staging, root, run_ids)
        except OSError as error:
            raise BundleError(cannot_write(root, error)) from error
    return run_ids


class _Bounded:
    """A file for zipfile, which believes what a zip file says of the length of its list."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = None) -> bytes:
        if size is not None and size > bundle.MAX_LIST_BYTES:
            raise BadZipFile("its list of files is too long")
        return self._file.read(-1 if size is None else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def _damage_in_words() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file makes zipfile raise nearly anything
        raise BundleError(
            f"this is no readable zip file ({_brief(error)}); import one that bnviz exported"
        ) from error


def _check_members(members: Sequence[ZipInfo]) -> None:
    """Refuse every member that `pack` would not have written."""
    known: set[str] = set()
    for member in members:
        name, size, packed = member.orig_filename, member.file_size, member.compress_size
        kind = stat.S_IFMT(member.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG) and not member.external_attr & bundle.NO_FILE
        dense = size <= max(bundle.RATIO_FROM_BYTES, bundle.MAX_RATIO * packed)
        small = size <= bundle.MAX_JSON_BYTES or not name.endswith(".json")
        for condition, otherwise in (
            (
                bundle.MEMBER.fullmatch(name),
                f"does not belong in a bundle; it holds {BELONGS}",
            ),
            (name not in known, "is there twice; each name may be there once"),
            (plain, "is a link, a folder or a device; plain files are allowed"),
            (not member.flag_bits & bundle.ENCRYPTED, "is encrypted; a bundle is not"),
            (member.compress_type in (ZIP_STORED, ZIP_DEFLATED), "is not deflated or stored"),
            (dense, f"unfolds more than {bundle.MAX_RATIO}-fold; nothing in a bundle does"),
            (small, f"is larger than {bundle.MAX_JSON_BYTES / 1e6:.0f} MB; none needs to be"),
        ):
            require(bool(condition), f"'{_brief(name)}' {otherwise}")
        known.add(name)


def _read_manifest(archive: ZipFile) -> list[str]:
    """The ids of the runs: those that the manifest names, and whose folders are there."""
    names = archive.namelist()
    require("bundle.json" in names, "this zip file is no bundle of bnviz: it has no bundle.json")
    try:
        manifest = json.loads(b"".join(_chunks(archive, archive.getinfo("bundle.json"))))
        format, version, runs = (manifest[key] for key in ("format", "format_version", "runs"))
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise BundleError("this zip file is no bundle of bnviz: its bundle.json is not") from error
    require(
        format == bundle.FORMAT, "this zip file is no bundle of bnviz: its bundle.json is another's"
    )
    require(
        version == bundle.FORMAT_VERSION and type(version) is int,
        f"the bundle has format {_brief(version)}, and this bnviz reads {bundle.FORMAT_VERSION}; "
        "use the bnviz that wrote it, or a newer one",
    )
    folders = {match["run_id"] for name in names if (match := bundle.MEMBER.fullmatch(name))} - {
        None
    }
    same = isinstance(runs, dict) and bool(runs) and set(runs) == folders
    require(same, "bundle.json must name the runs of the bundle, at least one, and no other")
    for run_id in runs:
        for required in ("config.json", "status.json"):
            require(f"{run_id}/{required}" in names, f"{run_id} has no {required}, and needs one")
    return list(runs)


def _refuse_known(root: Path, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        there = f"{run_id} is in {root} already; delete that one first, or import elsewhere"
        require(not os.path.lexists(root / run_id), there)


@contextlib.contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A hidden folder in the root, gone afterwards whatever happens."""
    folder = root / f".import-{secrets.token_hex(8)}"
    try:
        with contextlib.ExitStack() as held:
            with locked(root):
                _remove_abandoned(root)
                held.enter_context(locked(folder))  # tells other imports that this one lives
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Remove what imports that were killed have left; the root's lock is held."""
    for folder in root.glob(".import-*"):
        if not folder.is_symlink():
            # Where an import goes on, its folder cannot be locked.
            with contextlib.suppress(OSError), open(folder / ".lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def _extract(archive: ZipFile, staging: Path) -> None:
    """Read every member to its checksum, and put those of runs into the runs' folders."""
    needed = sum(member.file_size for member in archive.infolist()) + MIN_FREE_BYTES
    free = shutil.disk_usage(staging).free
    megabytes = f"{free / 1e6:,.0f} MB free, and the import needs {needed / 1e6:,.0f}"
    require(free >= needed, f"the disk has {megabytes}; make space, or import elsewhere")
    for member in archive.infolist():
        match = bundle.MEMBER.fullmatch(member.filename)
        assert match
        if match["kept"] is None:  # for people who open the zip file
            for _ in _chunks(archive, member):
                pass
            continue
        path = staging / match["run_id"] / match["kept"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            for chunk in _chunks(archive, member):
                file.write(chunk)
        sync(path)


def _chunks(archive: ZipFile, member: ZipInfo) -> Iterator[bytes]:
    """The content of a member, which is never more than it declares."""
    left = member.file_size
    with _damage_in_words(), archive.open(member) as file:
        while left >= 0 and (chunk := file.read(1 << 20)):
            left -= len(chunk)
            yield chunk
        if left:
            raise BadZipFile(f"{member.filename} has another size than it declares")


def _check_run(directory: Path) -> None:
    """Refuse a run of which anything cannot be read, and let its status name no process."""
    run = Run(directory)
    reading = "config.json"
    try:
        _ = run.config
        reading = "status.json"
        status = run.status
        reading = "about.json"
        if run.paths.about.exists():
            About.model_validate_json(run.paths.about.read_bytes())
        reading = "inference.json"
        run.inference()
        reading = "predictions.parquet"
        run.predictions()
    except (StoreError, ValidationError) as error:
        why = _brief(error.__cause__ or error)  # a StoreError's sentence names the hidden folder
        raise BundleError(f"{run.run_id}/{reading} is not valid: {why}") from error
    write_status(run.paths, bundle.at_rest(status), durable=True)
    for table in TABLES:
        rows = 0
        for path in sorted(run.paths.table(table).glob("*")):
            name = f"{run.run_id}/{table}/{path.name}"
            try:
                with open(path, "rb") as file:
                    rows += check_part(file, table)
            except DAMAGED as error:
                raise BundleError(
                    f"{name} is no part of a {table} table: {_brief(error)}"
                ) from error
            require(
                rows <= bundle.MAX_ROWS,
                f"the table of {name} has more than {bundle.MAX_ROWS:,} rows",
            )


def _place(staging: Path, root: Path, run_ids: Sequence[str]) -> None:
    with locked(root):
        _refuse_known(root, run_ids)  # again: now nobody else can add one
        try:
            for run_id in run_ids:
                os.rename(staging / run_id, root / run_id)
            sync(root)
        except BaseException:
            for run_id in run_ids:
                if not (staging / run_id).exists():
                    os.rename(root / run_id, staging / run_id)
            raise


def _brief(what: object) -> str:
    """One printable line of bounded length, whatever a file says."""
    return ascii(" ".join(str(what)[:200].split()))[1:-1][:200]
