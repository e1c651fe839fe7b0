import contextlib
import errno
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnviz import parts, store, trace
from bnviz.config import RunConfig
from bnviz.parts import live_parts
from bnviz.schema import GRID, METRICS, PERCENTILES
from bnviz.store import Run, RunPaths, StoreError, new_run_id, open_run
from bnviz.trace import TraceWriter

UNITS = 4
LAYERS = ("hidden1", "hidden2")


@pytest.fixture
def paths(tmp_path):
    directory = tmp_path / new_run_id("test")
    directory.mkdir()
    paths = RunPaths(directory)
    config = RunConfig().replace({"model.hidden": [UNITS] * len(LAYERS)})
    store.write_config(paths, config)
    return paths


def value(layer, unit, step):
    """Something different in every cell, exact in float32."""
    return LAYERS.index(layer) * 1000 + unit * 100 + step


def write(writer, step):
    writer.add_metrics(
        step=step, split="test", loss=0.5, accuracy=0.25, learning_rate=0.1, wall_time_s=step / 8
    )
    for layer in LAYERS:
        row = np.array([value(layer, unit, step) for unit in range(UNITS)], float)
        writer.add_percentiles(step, layer, row, row + 0.5, np.tile(row[:, None], (1, len(GRID))))


def check(run, steps):
    table = run.percentiles()
    expected = pd.MultiIndex.from_product([LAYERS, range(UNITS), steps])
    assert list(zip(table["layer"], table["unit"], table["step"], strict=True)) == list(expected)
    for row in table.itertuples():
        assert row.mean == row.p0 == row.p50 == row.p100 == value(row.layer, row.unit, row.step)
        assert row.std == row.mean + 0.5
    assert list(run.metrics()["step"]) == list(steps)


def test_what_is_flushed_is_read_back_in_order(paths):
    writer = TraceWriter(paths)
    run = Run(paths.directory)
    for step in range(5):
        write(writer, step)
        writer.flush()
        check(run, range(step + 1))  # the same reader sees it grow
    writer.merge()
    check(run, range(5))
    check(Run(paths.directory), range(5))
    assert [part.path.name for part in live_parts(paths.table("percentiles"))] == [
        "part-000001-000005.parquet"
    ]


def test_one_unit_is_read_alone(paths):
    writer = TraceWriter(paths)
    for step in (0, 3, 7):
        write(writer, step)
    writer.merge()
    run = Run(paths.directory)
    rows = run.percentiles("hidden2", 1)
    assert set(rows["layer"]) == {"hidden2"}
    assert set(rows["unit"]) == {1}
    assert list(rows["step"]) == [0, 3, 7]
    assert list(run.percentiles("hidden1", 2, steps=[7, 0])["step"]) == [0, 7]
    np.testing.assert_array_equal(run.spread_at_start("hidden1"), np.zeros(UNITS))


def test_tables_have_the_contracts_columns_and_types(paths):
    writer = TraceWriter(paths)
    write(writer, 0)
    writer.merge()
    for name, schema in (("metrics", METRICS), ("percentiles", PERCENTILES)):
        [part] = live_parts(paths.table(name))
        stored = pq.read_schema(part.path)
        assert stored.equals(schema)
        assert stored.field("step").metadata[b"unit"] == b"updates"


def test_many_parts_are_merged_as_they_come(paths, monkeypatch):
    monkeypatch.setattr(trace, "MERGE_AFTER_PARTS", 4)
    writer = TraceWriter(paths)
    for step in range(10):
        write(writer, step)
        writer.flush()
    names = [part.path.name for part in live_parts(paths.table("percentiles"))]
    assert names == [
        "part-000001-000004.parquet",
        "part-000005-000008.parquet",
        "part-000009-000009.parquet",
        "part-000010-000010.parquet",
    ]
    check(Run(paths.directory), range(10))


def test_a_merge_cut_short_counts_nothing_twice(paths, monkeypatch):
    """Killed between writing the merged file and deleting the parts that it covers."""
    writer = TraceWriter(paths)
    for step in range(3):
        write(writer, step)
        writer.flush()
    with monkeypatch.context() as patch:
        patch.setattr(store.Path, "unlink", lambda *args, **kwargs: None)
        writer.merge()
    assert len(list(paths.table("percentiles").iterdir())) == 4
    check(Run(paths.directory), range(3))


def test_files_of_an_unfinished_write_are_ignored(paths):
    writer = TraceWriter(paths)
    write(writer, 0)
    writer.flush()
    folder = paths.table("percentiles")
    (folder / ".part-000002-000002.parquet").write_bytes(b"half")
    (folder / "notes.txt").write_text("not ours")
    check(Run(paths.directory), [0])


def test_reading_while_parts_are_merged_away(paths, monkeypatch):
    writer = TraceWriter(paths)
    for step in range(3):
        write(writer, step)
        writer.flush()
    listed = live_parts(paths.table("percentiles"))
    writer.merge()
    answers = [listed, live_parts(paths.table("percentiles"))]
    run = Run(paths.directory)
    monkeypatch.setattr(store, "live_parts", lambda folder: answers.pop(0))
    assert len(run.percentiles()) == 3 * UNITS * len(LAYERS)


def test_unchanged_parts_are_read_once(paths, monkeypatch):
    writer = TraceWriter(paths)
    write(writer, 0)
    writer.flush()
    run = Run(paths.directory)
    run.percentiles("hidden1", 0)
    read = []
    original = pq.ParquetFile
    monkeypatch.setattr(parts.pq, "ParquetFile", lambda path: read.append(path) or original(path))
    run.percentiles("hidden1", 0)
    assert read == []
    write(writer, 1)
    writer.flush()
    assert len(run.percentiles("hidden1", 0)) == 2
    assert len(read) == 1


def test_a_large_table_is_merged_and_read_a_part_at_a_time(paths, monkeypatch):
    """As a small one is, with limits so low that each layer and unit is a share and a row group."""
    beside = RunPaths(paths.directory.parent / "other")
    beside.directory.mkdir()
    writer, other = TraceWriter(paths), TraceWriter(beside)
    for step in range(12):
        for table in (writer, other):
            write(table, step)
            table.flush()
    other.merge()
    monkeypatch.setattr(parts, "MERGED_AT_ONCE", 50)
    monkeypatch.setattr(parts, "ROW_GROUP_ROWS", 7)
    signs = []
    writer.merge(lambda: signs.append(1))
    assert len(signs) > 12 + 8  # after each part that is looked at, and each share
    [part] = live_parts(paths.table("percentiles"))
    assert pq.read_metadata(part.path).num_row_groups > 10
    store.write_config(beside, Run(paths.directory).config)
    large, usual = Run(paths.directory), Run(beside.directory)
    for selection in (
        {},
        {"layer": "hidden1"},
        {"layer": "hidden1", "unit": 0},
        {"layer": "hidden1", "unit": 2, "steps": [3, 5, 99]},
        {"steps": [11]},
        {"steps": []},
    ):
        pd.testing.assert_frame_equal(
            large.percentiles(**selection), usual.percentiles(**selection)
        )


def test_rows_without_what_they_are_sorted_by_come_last_and_are_not_merged(paths):
    """They may be in a file that was imported."""
    writer = TraceWriter(paths)
    write(writer, 0)
    writer.flush()
    table = pq.read_table(live_parts(paths.table("metrics"))[0].path)
    missing = table.set_column(1, table.schema.field(1), pa.array([None], pa.string()))
    pq.write_table(missing, paths.table("metrics") / "part-000002-000002.parquet")
    assert Run(paths.directory).metrics()["split"].isna().tolist() == [False, True]
    TraceWriter(paths, from_step=1).merge()
    assert Run(paths.directory).metrics()["split"].isna().tolist() == [False, True]
    assert len(live_parts(paths.table("metrics"))) == 2


def test_a_rate_change_is_told_from_other_events(paths):
    assert Run(paths.directory).rate_changes() == []
    writer = TraceWriter(paths)
    for name, value in (("resumed", None), ("learning_rate", 0.05)):
        writer.add_event(step=3, name=name, value=value, wall_time_s=1.0)
    writer.flush()
    assert Run(paths.directory).rate_changes() == [(3, 0.05)]


def test_a_run_without_records_is_empty_tables(paths):
    run = Run(paths.directory)
    assert run.metrics().empty
    assert run.percentiles("hidden1", 0).empty
    assert list(run.percentiles().columns) == PERCENTILES.names
    assert len(run.spread_at_start("hidden1")) == 0


def test_a_layer_or_unit_that_does_not_exist_is_answered_in_words(paths):
    run = Run(paths.directory)
    with pytest.raises(StoreError, match=r"no layer 'hidden9'; .* has hidden1, hidden2"):
        run.percentiles("hidden9")
    for unit in (-1, UNITS):
        with pytest.raises(StoreError, match=f"no unit {unit}; hidden1 has units 0 to 3"):
            run.percentiles("hidden1", unit)


@pytest.mark.parametrize(
    "run_id",
    ["../etc", "..", "", "a/b", "<script>alert(1)</script>", "20260101-000000-x/../..", "x" * 300],
)
def test_a_name_that_is_not_a_run_id_touches_no_path(tmp_path, run_id):
    with pytest.raises(StoreError, match="is not a run id"):
        store.run_directory(tmp_path, run_id)


def test_a_run_that_is_not_there_is_answered_in_words(tmp_path):
    with pytest.raises(StoreError, match="there is no run"):
        store.run_directory(tmp_path, "20260101-000000-x-abcdef")
    with pytest.raises(StoreError, match="not a run directory"):
        open_run(tmp_path)


@pytest.mark.parametrize("name", ["Figure 1: with BN!", "../../etc/passwd", "", "ÄÖ", "a" * 200])
def test_run_ids_are_safe_whatever_the_name(name):
    assert store.RUN_ID.fullmatch(new_run_id(name))
    assert len(new_run_id(name)) < 80


def test_two_runs_of_one_second_have_different_ids():
    assert new_run_id("x") != new_run_id("x")


def test_a_damaged_config_or_status_is_named(paths):
    run = Run(paths.directory)
    paths.status.write_text("{")
    with pytest.raises(StoreError, match=r"status.json is not a status file"):
        _ = run.status
    paths.config.write_text('{"model": {"depth": 3}}')
    with pytest.raises(StoreError, match=r"config.json: model.depth: unknown key"):
        _ = run.config


def test_only_runs_are_listed_newest_first(tmp_path):
    for name in ("20260102-000000-b-111111", "20260101-000000-a-111111", "notes", "x; rm -rf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "20260103-000000-unfinished-111111").mkdir()
    (tmp_path / "20260104-000000-file-111111").write_text("")
    (tmp_path / "20260105-000000-link-111111").symlink_to(tmp_path / "20260102-000000-b-111111")
    assert store.list_run_ids(tmp_path) == ["20260102-000000-b-111111", "20260101-000000-a-111111"]
    assert store.list_run_ids(tmp_path / "nothing") == []
    assert store.list_run_ids(tmp_path / "20260104-000000-file-111111") == []


def damaged(paths, name):
    path = paths.table("percentiles") / "part-000007-000007.parquet"
    {
        "empty": lambda: path.write_bytes(b""),
        "garbage": lambda: path.write_bytes(b"PAR1 and then nonsense PAR1"),
        "truncated": lambda: path.write_bytes(
            next(paths.table("percentiles").iterdir()).read_bytes()[:-100]
        ),
        "another table": lambda: pq.write_table(pa.table({"step": ["x"]}), path),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "folder": path.mkdir,
    }[name]()
    return path


@pytest.mark.parametrize(
    "name", ["empty", "garbage", "truncated", "another table", "dangling link", "folder"]
)
def test_a_damaged_part_is_named_and_all_else_is_read(paths, name):
    writer = TraceWriter(paths)
    write(writer, 0)
    writer.flush()
    path = damaged(paths, name)
    run = Run(paths.directory)
    assert len(run.percentiles("hidden1", 0)) == 1
    assert run.damaged == {path}
    assert len(run.metrics()) > 0


def test_a_merge_that_failed_doubles_nothing(paths, monkeypatch):
    monkeypatch.setattr(trace, "MERGE_AFTER_PARTS", 3)
    writer = TraceWriter(paths)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trace, "merge_parts", full)
        for step in range(3):
            write(writer, step)
            with contextlib.suppress(OSError):
                writer.flush()
    writer.flush()
    assert list(Run(paths.directory).metrics()["step"]) == [0, 1, 2]
    writer.merge()
    assert list(Run(paths.directory).metrics()["step"]) == [0, 1, 2]


def test_a_merged_part_covers_only_what_is_in_it(paths, monkeypatch):
    """Around a damaged part, merges leave gaps; when that part is removed, none may close them."""
    monkeypatch.setattr(trace, "MERGE_AFTER_PARTS", 4)
    writer = TraceWriter(paths)
    for step in range(4):
        if step == 3:
            (paths.table("metrics") / "part-000002-000002.parquet").write_bytes(b"damaged")
        write(writer, step)
        writer.flush()
    (paths.table("metrics") / "part-000002-000002.parquet").unlink()
    writer = TraceWriter(paths, from_step=4)
    for step in range(4, 9):
        write(writer, step)
        writer.flush()
    TraceWriter(paths, from_step=9).merge()
    assert list(Run(paths.directory).metrics()["step"]) == [0, 2, 3, 4, 5, 6, 7, 8]


def test_a_flush_that_failed_may_be_tried_again(paths, monkeypatch):
    writer = TraceWriter(paths)
    write(writer, 0)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parts.pq.ParquetWriter, "write_table", full)
        with pytest.raises(OSError, match="No space"):
            writer.flush()
    writer.flush()
    assert len(Run(paths.directory).metrics()) > 0
    assert len(Run(paths.directory).percentiles("hidden1", 0)) == 1


def test_what_a_newer_version_wrote_is_not_guessed_at(paths):
    paths.config.write_text('{"schema_version": 99}')
    with pytest.raises(StoreError, match=r"schema_version = 99: this bnviz reads 1"):
        _ = Run(paths.directory).config


@pytest.mark.parametrize(
    "change",
    [
        {"pid": -1},
        {"pid": 10**12},
        {"steps": 0},
        {"step": -3},
        {"step": 10**400},
        {"eta_s": float("nan")},
        {"finished_at": 1e308},
        {"state": "GONE"},
    ],
)
def test_a_status_with_impossible_values_is_not_a_status(paths, change):
    status = {"state": "RUNNING", "steps": 5, "submitted_at": 1.0, "updated_at": 1.0, **change}
    paths.status.write_text(json.dumps(status))
    with pytest.raises(StoreError, match=r"status.json is not a status file"):
        _ = Run(paths.directory).status
