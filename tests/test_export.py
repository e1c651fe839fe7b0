import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bnviz import export, store
from bnviz.config import RunConfig
from bnviz.store import StoreError, open_run
from bnviz.trace import TraceWriter

GRID_SIZE = 15


@pytest.fixture
def pair(tmp_path):
    """Two recorded runs without a process: in the one without BN, unit 2 has the median spread."""
    runs = []
    for kind in ("none", "batch"):
        directory = tmp_path / f"20260101-000000-{kind}-abc123"
        directory.mkdir()
        paths = store.RunPaths(directory)
        store.write_config(
            paths, RunConfig().replace({"model.hidden": [3], "model.normalization": kind})
        )
        writer = TraceWriter(paths)
        scale = np.array([3.0, 1.0, 2.0]) if kind == "none" else np.ones(3)
        for step in (0, 10):
            grid = np.outer(scale, np.linspace(-1, 1, GRID_SIZE)) + step
            writer.add_percentiles(step, "hidden1", grid[:, 7], scale, grid)
            for split, accuracy in (("test", 0.5 + step / 100), ("train", None)):
                writer.add_metrics(
                    step=step,
                    split=split,
                    loss=1.0,
                    accuracy=accuracy,
                    learning_rate=0.1,
                    wall_time_s=1.0,
                )
        writer.merge()
        runs.append(open_run(directory))
    return runs


def test_the_typical_unit_comes_from_the_run_without_bn(pair):
    assert export.typical_unit_of(pair, "hidden1") == 2
    assert export.typical_unit_of(pair[::-1], "hidden1") == 2
    assert export.typical_unit_of(pair[1:], "hidden1") == 1  # equal spreads: the middle one


def test_csv_holds_the_stores_numbers_and_says_where_they_come_from(pair):
    table = export.percentiles_table(pair, "hidden1", 1)
    content = export.to_csv(table, export.origin(pair))
    read = pd.read_csv(io.BytesIO(content), comment="#")
    for run in pair:
        rows = read[read["run_id"] == run.run_id]
        stored = run.percentiles("hidden1", 1)
        np.testing.assert_allclose(rows["p85"], stored["p85"], rtol=1e-6)
        assert list(rows["step"]) == [0, 10]
    header = [line[2:] for line in content.decode().splitlines() if line.startswith("# ")]
    origin = dict(line.split(": ", 1) for line in header)
    assert json.loads(origin["units"])["p85"] == "pre-activation"
    configs = json.loads(origin["runs"])
    assert RunConfig.parse(configs[pair[1].run_id]) == pair[1].config


def test_parquet_holds_the_same_with_its_origin(pair):
    table = export.accuracy_table(pair)
    content = export.to_parquet(table, export.origin(pair))
    arrow = pq.read_table(io.BytesIO(content))
    pd.testing.assert_frame_equal(arrow.to_pandas(), table)
    assert list(table.columns) == ["run_id", "normalization", "step", "accuracy", "loss"]
    assert list(table["accuracy"]) == pytest.approx([0.5, 0.6, 0.5, 0.6])
    origin = json.loads(arrow.schema.metadata[b"bnviz"])
    assert set(origin["runs"]) == {run.run_id for run in pair}


def test_html_is_self_contained(pair, tmp_path):
    [path] = export.export(pair, tmp_path / "out", [], ["html"])
    html = path.read_text()
    assert "Plotly.newPlot" in html
    assert "plotly.js v" in html  # the library itself
    assert 'src="http' not in html
    assert "Without BN: hidden1 unit 2" in html


@pytest.mark.parametrize(
    ("format", "magic"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_images_are_written_with_chromium(pair, tmp_path, format, magic):
    [path] = export.export(pair, tmp_path / "out", [], [format])
    assert path.read_bytes().startswith(magic)


def test_images_without_a_browser_say_what_to_do(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    with pytest.raises(StoreError, match="needs Chromium or Chrome"):
        export.export(pair, tmp_path / "out", [], ["png"])
    assert not (tmp_path / "out").exists()


def test_files_are_named_for_what_they_hold(pair, tmp_path):
    paths = export.export(pair, tmp_path / "out", ["percentiles", "accuracy"], ["csv", "parquet"])
    assert sorted(path.name for path in paths) == [
        "accuracy.csv",
        "accuracy.parquet",
        "percentiles-hidden1-unit2.csv",
        "percentiles-hidden1-unit2.parquet",
    ]
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)


def test_what_cannot_be_exported_is_answered_in_words(pair, tmp_path):
    with pytest.raises(StoreError, match="no unit 3; hidden1 has units 0 to 2"):
        export.export(pair, tmp_path, ["accuracy"], ["csv"], unit=3)
    with pytest.raises(StoreError, match="no layer 'x'"):
        export.export(pair, tmp_path, ["accuracy"], ["csv"], layer="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to"):
        export.export(pair, tmp_path / "file", ["accuracy"], ["csv"])
