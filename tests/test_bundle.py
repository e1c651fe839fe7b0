import io
import json
import re
import shlex
import stat
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnviz import bundle, jobs, predictions, store, unbundle
from bnviz.about import change_about, read_about
from bnviz.accuracies import Accuracies, Inference
from bnviz.bundle import BundleError, pack
from bnviz.config import RunConfig
from bnviz.predictions import Predictions
from bnviz.presets import find_preset
from bnviz.processes import boot_id, true_status
from bnviz.schema import EVENTS, METRICS, TABLES
from bnviz.status import State, Status
from bnviz.store import RunPaths, StoreError, list_run_ids, open_run
from bnviz.trace import TraceWriter
from bnviz.unbundle import unpack

from .conftest import small, stop_all, submit_and_wait

FIRST, SECOND = "20260101-000000-none-abc123", "20260102-000000-batch-abc123"
GONE_PID = 2**31 - 1
MEASURED = Inference(
    step=10,
    batches=2,
    batch_size=60,
    test_batch_size=60,
    examples=100,
    examples_alone=100,
    batch_statistics=Accuracies(in_batches=0.5, alone=0.1),
    moving_averages=Accuracies(in_batches=0.5, alone=0.5),
    population_statistics=Accuracies(in_batches=0.5, alone=0.5),
)
SETTINGS = {
    "model.hidden": [3],
    "model.bn_epsilon": 1e-05,
    "optimizer.learning_rate": 1.25e-7,
    "training.seed": 7,
    "trace.probe": "minibatch",
}

PREDICTED = Predictions(10, 24, np.array([0, 1], np.int32), *np.full((2, 2, 2), 0.5, np.float32))


def record(root, run_id, state=State.COMPLETED, steps=(0, 10), **changes):
    """A run with something in each of its files, of which no process knows."""
    paths = RunPaths(root / run_id)
    paths.directory.mkdir(parents=True)
    paths.log.write_text("training\n")
    paths.checkpoint.write_bytes(b"weights " * 1000)
    paths.inference.write_text(MEASURED.model_dump_json())
    predictions.write(paths.predictions, PREDICTED)
    status = {"state": state, "step": 10, "steps": 10, "submitted_at": 1.0, "updated_at": 2.0}
    store.write_status(paths, Status(**{**status, **changes}))
    kind = run_id.split("-")[2]
    store.write_config(paths, RunConfig().replace({**SETTINGS, "model.normalization": kind}))
    writer = TraceWriter(paths)
    for step in steps:
        grid = np.linspace(-1, 1, 45).reshape(3, 15) + step
        writer.add_percentiles(step, "hidden1", grid[:, 7], grid[:, 8], grid)
        writer.add_metrics(
            step=step, split="test", loss=1, accuracy=0.5, learning_rate=0.1, wall_time_s=1.0
        )
        writer.add_event(step=step, name="learning_rate", value=0.05, wall_time_s=1.0)
        writer.add_check(
            step=step,
            layer="hidden1",
            identity="output",
            units=3,
            left_out=0,
            error=1e-15,
            error_with_epsilon=1e-5,
        )
        writer.flush()
    run = open_run(paths.directory)
    change_about(run, name="Ä name", tags=["a tag"], note="two\nlines")
    return run


@pytest.fixture
def pair(tmp_path):
    root = tmp_path / "here"
    return [record(root, FIRST), record(root, SECOND)]


@pytest.fixture
def elsewhere(tmp_path):
    """A root that has been used, with nothing in it."""
    root = tmp_path / "elsewhere"
    with unbundle.locked(root):
        return root


def packed(runs, **figures):
    buffer = io.BytesIO()
    pack(runs, buffer, **figures)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a bundle of two runs."""
    root = tmp_path_factory.mktemp("content")
    figures = {"figure1-hidden1.html": b"<p>"}
    return packed([record(root, FIRST), record(root, SECOND)], figures=figures)


def listing(root):
    return sorted(path.relative_to(root) for path in root.rglob("*"))


def tables(run):
    return [run.metrics(), run.percentiles(), run.events(), run.checks()]


def refused(content, root, match, **options):
    before = listing(root)
    with pytest.raises(BundleError, match=match) as caught:
        unpack(io.BytesIO(content), root, **options)
    assert listing(root) == before
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert ".import-" not in str(caught.value)


def rewritten(content, changes=(), info=None):
    """The zip file with other contents of members (None: without it, a function: of the old), or
    with one member's ZipInfo changed."""
    changes = dict(changes)
    buffer = io.BytesIO()
    with ZipFile(io.BytesIO(content)) as old, ZipFile(buffer, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            value = changes.pop(member.filename, data)
            if value is not None:
                new.writestr(member, value(data) if callable(value) else value)
        for name, value in changes.items():
            new.writestr(name, value)
        if info is not None:
            with warnings.catch_warnings(action="ignore"):  # about names that are there twice
                new.writestr(*info)
    return buffer.getvalue()


def edited_json(**changes):
    return lambda data: json.dumps({**json.loads(data), **changes})


def parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


# Round trip -------------------------------------------------------------------------------------


def test_runs_are_the_same_on_the_other_machine(pair, tmp_path, elsewhere):
    file = tmp_path / "runs.zip"
    pack(pair, file)
    assert unpack(file, elsewhere) == [FIRST, SECOND]
    assert list_run_ids(elsewhere) == [SECOND, FIRST]
    for run in pair:
        again = open_run(elsewhere / run.run_id)
        for mine, other in zip(tables(run), tables(again), strict=True):
            pd.testing.assert_frame_equal(mine, other)
            assert not mine.empty
        assert again.config == run.config
        assert again.status == run.status
        assert read_about(again) == read_about(run)
        assert again.inference() == MEASURED
        assert (again.predictions().single == PREDICTED.single).all()
        assert again.paths.log.read_bytes() == run.paths.log.read_bytes()
        assert again.paths.checkpoint.read_bytes() == run.paths.checkpoint.read_bytes()
        files = {path.name for path in again.paths.directory.iterdir()}
        assert files == {*bundle.KEPT, *TABLES}
    assert {path.name for path in elsewhere.iterdir()} == {FIRST, SECOND, ".lock"}
    assert [path.name for path in tmp_path.glob("*.zip")] == ["runs.zip"]
    assert not list(tmp_path.glob(".runs*"))


def test_an_imported_run_can_be_exported_again(content, elsewhere, tmp_path):
    ids = unpack(io.BytesIO(content), elsewhere)
    again = packed([open_run(elsewhere / run_id) for run_id in ids])
    assert unpack(io.BytesIO(again), tmp_path / "third") == ids


def test_files_get_the_users_default_permissions(content, elsewhere, tmp_path):
    unpack(io.BytesIO(content), elsewhere)
    own_file, own_folder = tmp_path / "file", tmp_path / "folder"
    own_file.write_text("")
    own_folder.mkdir()
    for path in (elsewhere / FIRST).rglob("*"):
        own = own_folder if path.is_dir() else own_file
        assert path.stat().st_mode == own.stat().st_mode


def test_a_run_before_its_first_record_goes_along(tmp_path, elsewhere):
    run = record(tmp_path, FIRST, State.QUEUED, steps=())
    for name in set(bundle.KEPT) - {"config.json", "status.json"}:
        (run.paths.directory / name).unlink()
    unpack(io.BytesIO(packed([run])), elsewhere)
    again = open_run(elsewhere / FIRST)
    assert (again.status.state, again.status.reason) == (State.PAUSED, "exported while waiting")
    assert again.metrics().empty


@pytest.mark.parametrize(
    ("state", "change", "reason"),
    [
        (State.QUEUED, {}, "exported while waiting"),
        (State.RUNNING, {"pid": 1, "pid_started": 0.5}, "exported while running"),
        (State.RUNNING, {"pid": GONE_PID}, "exported after its process was gone"),
        (State.PAUSED, {"reason": "the disk is full"}, "the disk is full"),
    ],
)
def test_an_unfinished_run_arrives_paused(tmp_path, elsewhere, monkeypatch, state, change, reason):
    if change.get("pid") == 1:
        monkeypatch.setattr("bnviz.processes.process_started", lambda pid: 0.5)
    run = record(tmp_path, FIRST, state, eta_s=5.0, steps_per_s=2.0, boot_id=boot_id(), **change)
    content = packed([run])
    monkeypatch.undo()
    with ZipFile(io.BytesIO(content)) as archive:
        assert json.loads(archive.read(f"{FIRST}/status.json"))["pid"] is None
    unpack(io.BytesIO(content), elsewhere)
    status = true_status(open_run(elsewhere / FIRST))
    assert (status.state, status.reason, status.pid) == (State.PAUSED, reason, None)
    assert (status.eta_s, status.steps_per_s, status.boot_id) == (None, None, "")


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "LOST"])
def test_an_import_starts_nothing_whatever_a_status_says(content, elsewhere, monkeypatch, state):
    monkeypatch.setattr("subprocess.Popen", lambda *_: pytest.fail("a process was started"))
    hostile = edited_json(state=state, pid=1, pid_started=0.0, boot_id=boot_id())
    unpack(io.BytesIO(rewritten(content, {f"{FIRST}/status.json": hostile})), elsewhere)
    status = open_run(elsewhere / FIRST).status
    assert (status.state, status.pid) == (State.PAUSED, None)


def test_an_imported_run_goes_on_to_the_same_end(root, tmp_path):
    whole = submit_and_wait(small(), root)
    cut = whole.status.model_copy(update={"state": State.RUNNING, "pid": GONE_PID})
    store.write_status(whole.paths, cut)
    other = tmp_path / "other"
    unpack(io.BytesIO(packed([whole])), other)
    again = open_run(other / whole.run_id)
    try:
        jobs.resume(again)
        assert jobs.wait_until_finished(again, timeout_s=120) is State.COMPLETED
    finally:
        stop_all(other)
    pd.testing.assert_frame_equal(again.percentiles(), whole.percentiles())


def test_what_is_merged_meanwhile_is_packed_once(tmp_path, elsewhere, monkeypatch):
    run = record(tmp_path, FIRST, steps=(0, 5, 10))
    original = bundle.check_part
    writer = TraceWriter(run.paths)

    def merge_first(file, table):
        monkeypatch.setattr(bundle, "check_part", original)
        writer.merge()
        return original(file, table)

    monkeypatch.setattr(bundle, "check_part", merge_first)
    unpack(io.BytesIO(packed([run])), elsewhere)
    for mine, other in zip(tables(run), tables(open_run(elsewhere / FIRST)), strict=True):
        pd.testing.assert_frame_equal(mine, other)


def test_the_one_before_stands_in_while_a_checkpoint_is_replaced(pair):
    pair[0].paths.checkpoint.rename(pair[0].paths.directory / "checkpoint-previous.pt")
    with ZipFile(io.BytesIO(packed(pair[:1]))) as archive:
        assert archive.read(f"{FIRST}/checkpoint.pt").startswith(b"weights")


def test_what_is_damaged_is_named_and_all_else_goes_along(pair, tmp_path, elsewhere):
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    metrics = pair[0].paths.table("metrics")
    (metrics / "part-000008-000008.parquet").write_bytes(b"PAR1 nonsense PAR1")
    (metrics / "part-000009-000009.parquet").symlink_to(secret)
    pair[0].paths.log.unlink()
    pair[0].paths.log.symlink_to(secret)
    pair[0].paths.inference.write_text("{}")
    pair[0].paths.predictions.write_bytes(b"PAR1")
    content = packed(pair)
    assert b"a secret" not in content
    with ZipFile(io.BytesIO(content)) as archive:
        manifest = json.loads(archive.read("bundle.json"))
    assert manifest["runs"][FIRST]["damaged_and_left_out"] == [
        "metrics/part-000008-000008.parquet",
        "metrics/part-000009-000009.parquet",
        "inference.json",
        "predictions.parquet",
    ]
    unpack(io.BytesIO(content), elsewhere)
    assert len(open_run(elsewhere / FIRST).metrics()) == 2


# For people who open the zip file ---------------------------------------------------------------


def test_the_command_trains_the_same_configuration_again(pair, content, tmp_path, monkeypatch):
    with ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "unzipped")
    monkeypatch.chdir(tmp_path / "unzipped")
    manifest = json.loads((tmp_path / "unzipped" / "bundle.json").read_text())
    for run in pair:
        command = manifest["runs"][run.run_id]["command"]
        *words, file = shlex.split(command)
        assert words == ["python", "-m", "bnviz", "run"]
        [config] = find_preset(file).runs.values()
        assert config == run.config
        assert config != RunConfig()


def test_the_zip_file_explains_itself(content, tmp_path, monkeypatch):
    with ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    readme = (tmp_path / "README.txt").read_text()
    assert FIRST in readme
    assert SECOND in readme
    assert "python -m bnviz import FILE" in readme
    [path] = re.findall(r'read_parquet\("(.*)"\)', readme)
    assert list(pd.read_parquet(path)["step"]) == [0, 10]
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    assert list(manifest["runs"]) == [FIRST, SECOND]
    assert set(manifest["versions"]) == {"bnviz", "python", "torch", "platform"}
    assert manifest["exported_at"].endswith("+00:00")
    assert (tmp_path / "figures" / "figure1-hidden1.html").read_bytes() == b"<p>"


# Not packed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x.png", "x", "", "a/b.png", ".png", "x.png\n", "C:x.png"])
def test_a_figure_with_an_impossible_name_is_refused(pair, tmp_path, name):
    with pytest.raises(BundleError, match="name it by letters"):
        pack(pair, tmp_path / "x.zip", {name: b""})
    assert not (tmp_path / "x.zip").exists()


def test_what_cannot_be_packed_is_said(pair, tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="choose at least one run"):
        pack([], tmp_path / "x.zip")
    with pytest.raises(BundleError, match="given twice"):
        pack([pair[0], pair[0]], tmp_path / "x.zip")
    with pytest.raises(BundleError, match=r"cannot export: .*No such file or directory"):
        pack(pair, tmp_path / "nowhere" / "x.zip")
    renamed = pair[1].paths.directory.rename(tmp_path / "my run")
    with pytest.raises(BundleError, match="cannot export 'my run': its folder must be named"):
        pack([open_run(renamed)], tmp_path / "x.zip")
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="export fewer at once"):
        pack(pair[:1], tmp_path / "x.zip")
    assert not list(tmp_path.glob("*x.zip*"))


def test_a_run_deleted_meanwhile_is_named(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "_pack_table", lambda *_: jobs.delete(pair[0]) or [])
    monkeypatch.setattr(bundle, "TABLES", {"metrics": METRICS})
    with pytest.raises(BundleError, match=f"{FIRST} was deleted meanwhile"):
        pack(pair[:1], tmp_path / "x.zip")


# Hostile zip files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        f"{FIRST}/../evil.txt",
        f"{FIRST}/../config.json",
        "/etc/passwd",
        f"/{FIRST}/config.json",
        f"{FIRST}\\config.json",
        "C:/config.json",
        f"C:{FIRST}/log.txt",
        f"{FIRST}/log.txt\n",
        f"{FIRST}/log\x1b[31m.txt",
        f"{FIRST}/",
        f"{FIRST}//log.txt",
        f"./{FIRST}/log.txt",
        f"{FIRST}/LOG.TXT",
        f"{FIRST}/control/cancel",
        f"{FIRST}/checkpoint-previous.pt",
        f"{FIRST}/.reserve",
        f"{FIRST}/metrics/",
        f"{FIRST}/metrics/part-1-1.parquet",
        f"{FIRST}/metrics/part-٠٠٠٠٠٩-000009.parquet",
        f"{FIRST}/weights/part-000009-000009.parquet",
        f"{FIRST}/metrics/../events/part-000009-000009.parquet",
        "not-a-run/config.json",
        ".lock",
        ".trash/20260101-000000-x/config.json",
        "figures/../evil.png",
        "figures/a/b.png",
        "figures/.hidden",
        "README.md",
        "__MACOSX/README.txt",
        "\u202etxt.exe",
        "x" * 5000,
    ],
)
def test_a_name_that_does_not_belong_is_refused(content, elsewhere, name):
    refused(rewritten(content, {name: b""}), elsewhere, "does not belong in a bundle; it holds")


def test_a_name_with_a_null_is_refused(content, elsewhere):
    name = "figures/a.png"
    hostile = rewritten(content, {name: b""}).replace(name.encode(), b"figures/a.p\0g")
    refused(hostile, elsewhere, "does not belong in a bundle")


def member(name, mode=stat.S_IFREG | 0o644, compression=ZIP_STORED, flags=0):
    info = ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = compression
    info.flag_bits = flags
    return info


@pytest.mark.parametrize(
    "kind", ["S_IFLNK", "S_IFDIR", "S_IFIFO", "S_IFCHR", "S_IFBLK", "S_IFSOCK"]
)
def test_what_is_no_plain_file_is_refused(content, elsewhere, kind):
    info = member("figures/a.png", getattr(stat, kind) | 0o777)
    hostile = rewritten(content, info=(info, "/etc/passwd"))
    refused(hostile, elsewhere, "is a link, a folder or a device; plain files are allowed")


@pytest.mark.parametrize("attribute", [0x10, 0x400])
def test_what_is_no_plain_file_on_windows_is_refused(content, elsewhere, attribute):
    info = member("figures/a.png")
    info.external_attr = attribute
    refused(rewritten(content, info=(info, b"")), elsewhere, "is a link, a folder or a device")


def test_a_name_twice_is_refused(content, elsewhere):
    hostile = rewritten(content, info=(member(f"{FIRST}/log.txt"), b"another"))
    refused(hostile, elsewhere, "is there twice; each name may be there once")


def patched_list(content, name, offset, format, value):
    """The zip file with a field of a member's entry in the list at its end set."""
    at = content.index(b"PK\1\2")
    while content[at + 46 :][: len(name)] != name.encode():
        at = content.index(b"PK\1\2", at + 4)
    changed = bytearray(content)
    struct.pack_into(format, changed, at + offset, value)
    return bytes(changed)


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2000])
def test_an_encrypted_file_is_refused(content, elsewhere, flag):
    hostile = patched_list(content, f"{FIRST}/log.txt", 8, "<H", flag)
    refused(hostile, elsewhere, "is encrypted; a bundle is not")


def test_other_compressions_are_refused(content, elsewhere):
    hostile = rewritten(content, info=(member("figures/a.png", compression=ZIP_BZIP2), b"x"))
    refused(hostile, elsewhere, "is not deflated or stored")


def test_a_bomb_is_refused(content, elsewhere):
    zeros = member("figures/a.png", compression=ZIP_DEFLATED)
    hostile = rewritten(content, info=(zeros, b"\0" * 20_000_000))
    refused(hostile, elsewhere, "unfolds more than 100-fold")
    refused(content, elsewhere, "export fewer at once", max_bytes=10_000)


def test_too_many_files_are_refused(content, elsewhere, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_MEMBERS", 5)
    refused(content, elsewhere, "files, and a bundle may have .* in 5; export fewer at once")
    monkeypatch.setattr(bundle, "MAX_LIST_BYTES", 500)
    refused(content, elsewhere, "its list of files is too long")


def test_a_large_json_file_is_refused(content, elsewhere, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_JSON_BYTES", 100)
    refused(content, elsewhere, r"json' is larger than")


@pytest.mark.parametrize("size", [1, 7_999, 8_001, 2**31])
def test_a_size_that_is_not_true_is_refused(content, elsewhere, size):
    """The 8,000 bytes of the checkpoint are declared as more, or fewer."""
    hostile = patched_list(content, f"{FIRST}/checkpoint.pt", 24, "<I", size)
    refused(hostile, elsewhere, "no readable zip file|unfolds more than|the disk has")


def test_a_shorter_stream_with_a_true_checksum_is_refused(content, elsewhere):
    info = member("figures/a.png", compression=ZIP_DEFLATED)
    hostile = rewritten(content, info=(info, b"abc"))
    hostile = patched_list(hostile, "figures/a.png", 24, "<I", 4)
    refused(hostile, elsewhere, "no readable zip file")


def test_a_wrong_checksum_is_refused(content, elsewhere):
    for name in (f"{FIRST}/log.txt", "figures/figure1-hidden1.html"):
        refused(patched_list(content, name, 16, "<I", 12345), elsewhere, "Bad CRC-32")


def test_what_is_no_bundle_is_refused(content, elsewhere, tmp_path):
    for nothing in (b"", b"PK", b"not a zip file", content[:1000], content[: len(content) // 2]):
        refused(nothing, elsewhere, "no readable zip file")
    refused(rewritten(content, {"bundle.json": None}), elsewhere, "it has no bundle.json")
    with pytest.raises(BundleError, match="No such file or directory"):
        unpack(tmp_path / "nothing.zip", elsewhere)
    with pytest.raises(BundleError, match="Is a directory"):
        unpack(tmp_path, elsewhere)


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        (b"", "its bundle.json is not"),
        (b"[]", "its bundle.json is not"),
        (b"[" * 200_000, "its bundle.json is not"),
        (b"\xff", "its bundle.json is not"),
        (edited_json(format="other"), "its bundle.json is another's"),
        (edited_json(format_version=2), "format 2, and this bnviz reads 1; use"),
        (edited_json(format_version=True), "format True, and this bnviz reads 1"),
        (edited_json(format_version="\x1b" * 999), "and this bnviz reads 1"),
        (edited_json(runs={}), "must name the runs"),
        (edited_json(runs=[FIRST, SECOND]), "must name the runs"),
        (edited_json(runs={FIRST: {}}), "must name the runs"),
        (edited_json(runs={FIRST: {}, SECOND: {}, "../x": {}}), "must name the runs"),
    ],
)
def test_a_manifest_of_something_else_is_refused(content, elsewhere, manifest, match):
    refused(rewritten(content, {"bundle.json": manifest}), elsewhere, match)


@pytest.mark.parametrize(
    ("file", "value", "match"),
    [
        ("config.json", None, "has no config.json, and needs one"),
        ("status.json", None, "has no status.json, and needs one"),
        ("config.json", b"{", "config.json is not valid: not valid JSON"),
        ("config.json", b"\xff\xfe", "config.json is not valid"),
        ("config.json", b"[" * 200_000, "config.json is not valid"),
        ("config.json", edited_json(model={"depth": 3}), "model.depth: unknown key"),
        ("config.json", edited_json(model={"kind": "x" * 9999}), "config.json is not valid"),
        ("config.json", edited_json(schema_version=99), "schema_version = 99"),
        ("status.json", b"{}", "status.json is not valid"),
        ("status.json", b"[" * 200_000, "status.json is not valid"),
        ("status.json", edited_json(step=-1), "status.json is not valid"),
        ("status.json", edited_json(state="\x1b[31m"), "status.json is not valid"),
        ("status.json", edited_json(updated_at=float("nan")), "status.json is not valid"),
        ("about.json", edited_json(name="two\nlines"), "about.json is not valid"),
        ("about.json", b"", "about.json is not valid"),
        ("inference.json", edited_json(examples=0), "inference.json is not valid"),
        ("predictions.parquet", b"PAR1 nonsense PAR1", "predictions.parquet is not valid"),
    ],
)
def test_a_run_that_does_not_validate_is_refused(content, elsewhere, file, value, match):
    refused(rewritten(content, {f"{SECOND}/{file}": value}), elsewhere, match)


LONG = {"step": [0], "name": ["x" * 101], "value": [1.0], "wall_time_s": [1.0]}


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"PAR1 and then nonsense PAR1",
        lambda data: data[:-10],
        lambda data: data[:100] + b"\0" * 50 + data[150:],
        parquet(pa.table({"step": ["x"]})),
        parquet(METRICS.empty_table()),
        parquet(EVENTS.empty_table().append_column("code", pa.array([], pa.string()))),
        parquet(pa.Table.from_pydict(LONG, EVENTS)),
    ],
    ids=["empty", "no parquet", "cut", "damaged", "columns", "another table", "more", "long text"],
)
def test_a_part_of_something_else_is_refused(content, elsewhere, part):
    name = f"{SECOND}/events/part-000001-000001.parquet"
    refused(rewritten(content, {name: part}), elsewhere, f"{name} is no part of a events table")


def test_more_rows_than_any_run_has_are_refused(content, elsewhere, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_ROWS", 1)
    refused(content, elsewhere, "has more than 1 rows")
    monkeypatch.setattr(bundle, "MAX_ROWS", 0)
    refused(content, elsewhere, "at most 0 rows")


def test_a_run_that_is_there_is_not_touched(content, elsewhere):
    record(elsewhere, SECOND, step=3)
    refused(content, elsewhere, f"{SECOND} is in .* already; delete that one first")
    assert open_run(elsewhere / SECOND).status.step == 3
    assert not (elsewhere / FIRST).exists()


def test_a_link_in_the_place_of_a_run_is_not_followed(content, elsewhere, tmp_path):
    (elsewhere / FIRST).symlink_to(tmp_path / "nowhere")
    refused(content, elsewhere, f"{FIRST} is in .* already")


def test_a_run_that_came_meanwhile_is_not_touched(content, elsewhere, monkeypatch):
    check = unbundle._check_run

    def come(directory):
        monkeypatch.setattr(unbundle, "_check_run", check)
        record(elsewhere, SECOND)

    monkeypatch.setattr(unbundle, "_check_run", come)
    with pytest.raises(BundleError, match=f"{SECOND} is in .* already"):
        unpack(io.BytesIO(content), elsewhere)
    assert {path.name for path in elsewhere.iterdir()} == {SECOND, ".lock"}


def test_without_space_nothing_is_imported(content, elsewhere, monkeypatch):
    usage = bundle.shutil.disk_usage(elsewhere)
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda path: usage._replace(free=40_000_000))
    refused(content, elsewhere, "the disk has 40 MB free, and the import needs 50; make space")


def fail_at(monkeypatch, owner, name, call, error):
    """Let a function raise at its `call`-th call, counted from 1."""
    original, calls = getattr(owner, name), []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()], ids=repr
)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sync", 1),
        ("sync", 9),
        ("_check_run", 2),
        ("write_status", 1),
        ("_place", 1),
        ("_refuse_known", 2),
    ],
)
def test_an_interrupted_import_leaves_nothing(content, elsewhere, monkeypatch, name, call, error):
    before = listing(elsewhere)
    with monkeypatch.context() as patch:
        fail_at(patch, unbundle, name, call, error)
        expected = StoreError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected):
            unpack(io.BytesIO(content), elsewhere)
    assert listing(elsewhere) == before
    assert unpack(io.BytesIO(content), elsewhere) == [FIRST, SECOND]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")], ids=repr)
def test_all_runs_come_or_none(content, elsewhere, monkeypatch, error):
    """The second of the renames into place fails, after the first run is there."""
    before = listing(elsewhere)
    original = bundle.os.rename

    def rename(old, new):
        if new == elsewhere / SECOND:
            assert (elsewhere / FIRST).is_dir()
            raise error
        original(old, new)

    monkeypatch.setattr(bundle.os, "rename", rename)
    with pytest.raises((KeyboardInterrupt, BundleError)):
        unpack(io.BytesIO(content), elsewhere)
    assert listing(elsewhere) == before


def test_what_a_killed_import_left_is_removed_by_the_next_one(content, elsewhere):
    abandoned, alive = elsewhere / ".import-0123", elsewhere / ".import-4567"
    (abandoned / FIRST).mkdir(parents=True)
    with unbundle.locked(alive):
        unpack(io.BytesIO(content), elsewhere)
        assert alive.exists()
    assert not abandoned.exists()


def test_a_root_that_cannot_be_written_is_said(content, tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(StoreError, match="cannot write runs to"):
        unpack(io.BytesIO(content), root)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    in_the_list=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_whatever_is_changed_a_bundle_is_imported_whole_or_not_at_all(
    content, tmp_path, in_the_list, changes
):
    """Half of the time in the list at the end, in which everything is declared."""
    changed = bytearray(content)
    begin = content.index(b"PK\1\2") if in_the_list else 0
    for offset, value in changes:
        changed[begin + offset % (len(content) - begin)] = value
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        root = Path(folder)
        try:
            unpack(io.BytesIO(changed), root)
        except BundleError:
            assert {path.name for path in root.iterdir()} <= {".lock"}
        else:
            assert list_run_ids(root) == [SECOND, FIRST]
            for run_id in (FIRST, SECOND):
                assert len(open_run(root / run_id).metrics()) == 2


def test_a_list_that_declares_any_length_is_not_loaded(content, elsewhere):
    hostile = bytearray(content)
    struct.pack_into("<I", hostile, content.rindex(b"PK\5\6") + 12, 2**32 - 2)
    refused(bytes(hostile), elsewhere, "no readable zip file")
    assert zipfile.is_zipfile(io.BytesIO(content))
