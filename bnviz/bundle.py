"""Bundles: runs in one zip file that opens again on another machine (`bnviz.unbundle`)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bnviz.about import read_about
from bnviz.files import replace_aside
from bnviz.parts import DAMAGED, ROW_GROUP_ROWS, SORT_KEYS, live_parts
from bnviz.processes import true_status
from bnviz.schema import TABLES
from bnviz.status import State, Status
from bnviz.store import RUN_ID, Run, StoreError
from bnviz.versions import versions

FORMAT, FORMAT_VERSION = "bnviz-bundle", 1

MAX_BYTES = 4_000_000_000
"""Of all files unpacked. A run of Figure 1 takes 25 MB."""

MAX_MEMBERS, MAX_LIST_BYTES = 100_000, 25_000_000
"""A finished run has ten files, one cut after days a few thousand. zipfile loads the list of them
at once, before anybody can count."""

MAX_JSON_BYTES = 10_000_000

MAX_RATIO, RATIO_FROM_BYTES = 100, 10_000_000
"""Nothing large in a bundle can be deflated so far: parts and checkpoints are dense."""

MAX_ROWS, MAX_TEXT_BYTES = 50_000_000, 100
"""Rows of a run's table, and the length of a text in it: a small Parquet file can unfold to more
than any memory."""

KEPT = (
    "config.json",
    "status.json",
    "about.json",
    "inference.json",
    "predictions.parquet",
    "log.txt",
    "checkpoint.pt",
)
FIGURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)+")
MEMBER = re.compile(
    rf"bundle\.json|README\.txt|figures/{FIGURE.pattern}|(?P<run_id>{RUN_ID.pattern})/"
    rf"(reproduce\.toml|(?P<kept>{'|'.join(map(re.escape, KEPT))}"
    rf"|({'|'.join(TABLES)})/part-[0-9]{{6,15}}-[0-9]{{6,15}}\.parquet))"
)
BELONGS = (
    "bundle.json, README.txt, figures/NAME and for each run RUN_ID/ with reproduce.toml, "
    f"{', '.join(KEPT)} and TABLE/part-N-N.parquet"
)
NO_FILE = 0x10 | 0x400  # external attributes of a folder and a link on Windows
ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags: encrypted, strongly encrypted, list encrypted

PAUSED_BECAUSE = {
    State.QUEUED: "exported while waiting",
    State.RUNNING: "exported while running",
    State.LOST: "exported after its process was gone",
}

README = """\
Runs of bnviz, a dashboard for experiments about batch normalization (Ioffe & Szegedy, 2015):

{runs}

To see them in the dashboard, import the zip file as it is:

  python -m bnviz import FILE

To read a table with pandas, unzip it first:

  pandas.read_parquet("{example}/metrics")

To train a run anew, unzip it too. On the same device with the versions in bundle.json, the numbers
are the same; learning rates changed while it trained (events/) must be changed again.

  python -m bnviz run {example}/reproduce.toml

A run's folder holds its configuration (config.json), state and results (status.json), name and note
(about.json), losses and accuracies (metrics/), distributions of the pre-activations (percentiles/),
changes while it trained (events/), the paper's identities (checks/), how good it is at inference
(inference.json), class probabilities of the test examples where they were stored
(predictions.parquet), the state it can go on from (checkpoint.pt) and its output (log.txt).
bundle.json also names damaged files, which were left out; figures/ holds figures of the runs, where
there are some, which open in any browser.
"""


class BundleError(StoreError):
    """Runs that cannot be exported or imported; the message says why and what is allowed."""


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise BundleError(otherwise)


def pack(runs: Sequence[Run], to: Path | BinaryIO, figures: Mapping[str, bytes] = {}) -> None:
    """Write runs into a zip file. One that trains is packed as it is now, to be resumed.

    Args:
        figures: files to go along, by name.

    Raises:
        BundleError: no runs, one given twice, an impossible name, too much, or nowhere to write.
        StoreError: a configuration cannot be read.
    """
    run_ids = [run.run_id for run in runs]
    require(bool(runs), "there is nothing to export; choose at least one run")
    require(len(set(run_ids)) == len(runs), "a run is given twice; export each one once")
    for run_id in run_ids:
        known_by = "its folder must be named like 20260131-235959-figure1-with-bn-1a2b3c"
        require(bool(RUN_ID.fullmatch(run_id)), f"cannot export {run_id!r}: {known_by}")
    for name in figures:
        letters = "letters, digits, - and _ with an ending such as .png"
        require(bool(FIGURE.fullmatch(name)), f"cannot export {name!r}: name it by {letters}")
    try:
        if isinstance(to, Path):
            replace_aside(to, lambda aside: _write_zip(aside, runs, figures))
        else:
            _write_zip(to, runs, figures)
    except OSError as error:
        raise BundleError(f"cannot export: {error}; make space or choose another place") from error


def at_rest(status: Status) -> Status:
    """A status that names no process: what waited or trained is PAUSED, and can be resumed."""
    changes: dict[str, Any] = {"pid": None, "pid_started": None, "boot_id": ""}
    if status.state in PAUSED_BECAUSE:
        changes |= {"state": State.PAUSED, "reason": PAUSED_BECAUSE[status.state]}
    return status.model_copy(update={**changes, "steps_per_s": None, "eta_s": None})


def _write_zip(target: Path | BinaryIO, runs: Sequence[Run], figures: Mapping[str, bytes]) -> None:
    with ZipFile(target, "w") as archive:
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "runs": {run.run_id: _pack_run(archive, run) for run in runs},
        }
        for name, content in figures.items():
            _put(archive, f"figures/{name}", content)
        listed = "\n".join(f"  {run.run_id}  ({run.config.label})" for run in runs)
        _put(archive, "README.txt", README.format(runs=listed, example=runs[0].run_id))
        _put(archive, "bundle.json", json.dumps(manifest, indent=2) + "\n")
        check_size(archive.infolist(), MAX_BYTES)


def _pack_run(archive: ZipFile, run: Run) -> dict[str, Any]:
    """Add a run; returns what the manifest says of it."""
    paths, folder = run.paths, run.run_id
    # In this order, for a run that trains meanwhile: a status that says COMPLETED is no newer than
    # the tables, and they have all that was recorded before the checkpoint.
    status = at_rest(true_status(run))
    _put(archive, f"{folder}/reproduce.toml", experiment(run))
    _put(archive, f"{folder}/config.json", paths.config.read_bytes())
    _put(archive, f"{folder}/status.json", status.model_dump_json(indent=2))
    if paths.about.is_file():
        _put(archive, f"{folder}/about.json", read_about(run).model_dump_json(indent=2))
    # The one before, for the moment in which a new checkpoint takes its place.
    for path in (paths.checkpoint, paths.directory / "checkpoint-previous.pt"):
        with contextlib.suppress(FileNotFoundError):
            if _copy(archive, f"{folder}/checkpoint.pt", path):
                break
    damaged = [name for table in TABLES for name in _pack_table(archive, run, table)]
    try:
        if measured := run.inference():
            _put(archive, f"{folder}/inference.json", measured.model_dump_json(indent=2))
    except StoreError:
        damaged.append("inference.json")
    try:
        if run.predictions():
            _copy(archive, f"{folder}/predictions.parquet", paths.predictions)
    except StoreError:
        damaged.append("predictions.parquet")
    with contextlib.suppress(FileNotFoundError):
        _copy(archive, f"{folder}/log.txt", paths.log)
    require(paths.config.is_file(), f"{folder} was deleted meanwhile; export the others")
    check_size(archive.infolist(), MAX_BYTES)
    command = f"python -m bnviz run {folder}/reproduce.toml"
    return {"command": command, "damaged_and_left_out": damaged}


def _pack_table(archive: ZipFile, run: Run, table: str) -> list[str]:
    """Add the parts of a table; returns the damaged ones, which are left out."""
    damaged: list[str] = []
    done: set[str] = set()
    again = True
    while again:
        again = False
        for path in (part.path for part in live_parts(run.paths.table(table))):
            name = f"{table}/{path.name}"
            if name in done:
                continue
            done.add(name)
            try:
                if not _copy(archive, f"{run.run_id}/{name}", path, table):
                    damaged.append(name)
            except FileNotFoundError:
                again = True  # merged since it was listed: another has its rows
    return damaged


def _copy(archive: ZipFile, name: str, path: Path, table: str | None = None) -> bool:
    """Add a file, a part of `table` where that is given; False where it is none or damaged."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False  # a link may lead to what nobody wants to send away
    with open(path, "rb") as file:
        try:
            if table is not None:
                check_part(file, table)
        except DAMAGED:
            return False
        file.seek(0)
        info = _info(name)
        info.file_size = os.fstat(file.fileno()).st_size
        with archive.open(info, "w") as member:
            shutil.copyfileobj(file, member)
    return True


def _put(archive: ZipFile, name: str, content: str | bytes) -> None:
    archive.writestr(_info(name), content, ZIP_DEFLATED)


def _info(name: str) -> ZipInfo:
    info = ZipInfo(name, time.localtime()[:6])
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def experiment(run: Run) -> str:
    """The TOML of an experiment of this one run, with every value, so that no other default changes
    it."""
    lines = [f'title = "{run.run_id}"']
    for part, values in run.config.model_dump(mode="json").items():
        lines += [f"\n[{part}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def check_size(members: Sequence[ZipInfo], max_bytes: int) -> None:
    gigabytes = sum(member.file_size for member in members) / 1e9
    allowed = f"a bundle may have {max_bytes / 1e9:.1f} in {MAX_MEMBERS:,}; export fewer at once"
    fits = gigabytes <= max_bytes / 1e9 and len(members) <= MAX_MEMBERS
    require(fits, f"the runs have {gigabytes:.1f} GB in {len(members):,} files, and {allowed}")


def check_part(file: BinaryIO, table: str) -> int:
    """Read all rows, a few at a time, and return their number. Raises one of DAMAGED."""
    if not pq.read_schema(file).equals(TABLES[table]):
        raise ValueError(f"its columns are not {', '.join(TABLES[table].names)}")
    # As a dictionary, a text that many rows share is in memory once.
    texts = [column.name for column in TABLES[table] if column.type == pa.string()]
    file.seek(0)
    rows = 0
    for batch in pq.ParquetFile(file, read_dictionary=texts).iter_batches(ROW_GROUP_ROWS):
        rows += batch.num_rows
        if any(batch[key].null_count for key in SORT_KEYS[table]):
            raise ValueError(f"each row needs {', '.join(SORT_KEYS[table])}")
        longest = [pc.max(pc.binary_length(batch.column(t).dictionary)).as_py() for t in texts]
        if rows > MAX_ROWS or max(filter(None, longest), default=0) > MAX_TEXT_BYTES:
            raise ValueError(f"at most {MAX_ROWS:,} rows, and texts of {MAX_TEXT_BYTES} bytes")
    return rows
