import io
import json
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pypdf import PdfReader

from bnviz import export, figure_files, store, tables
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
    assert tables.typical_unit_of(pair, "hidden1") == 2
    assert tables.typical_unit_of(pair[::-1], "hidden1") == 2
    assert tables.typical_unit_of(pair[1:], "hidden1") == 1  # equal spreads: the middle one


def test_csv_holds_the_stores_numbers_and_says_where_they_come_from(pair):
    table = tables.percentiles_table(pair, "hidden1", 1)
    content = tables.to_csv(table, tables.origin(pair))
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
    table = tables.accuracy_table(pair)
    content = tables.to_parquet(table, tables.origin(pair))
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
    origin = json.loads(html.split('id="origin">')[1].split("</script>")[0])
    assert_names_its_origin(origin, pair)


def assert_names_its_origin(origin, runs):
    for run in runs:
        assert RunConfig.parse(origin["runs"][run.run_id]) == run.config
    assert set(origin["versions"]) == {"bnviz", "python", "torch", "platform"}
    assert datetime.fromisoformat(origin["exported_at"]) <= datetime.now(UTC)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_images_name_their_origin_and_have_the_width_of_their_look(pair, tmp_path):
    formats = ["png", "svg", "pdf"]
    for look, inches in (("screen", 12.5), ("page", 6.75)):
        png, svg, pdf = export.export(pair, tmp_path / look, [], formats, look=look)
        picture = Image.open(png)
        scale = 2 if look == "screen" else 300 / 96
        assert picture.width == pytest.approx(inches * 96 * scale, abs=2)
        assert_names_its_origin(json.loads(picture.text["Description"]), pair)
        drawing = ElementTree.parse(svg).getroot()
        assert float(drawing.get("width")) == inches * 96
        metadata = drawing.find("{http://www.w3.org/2000/svg}metadata").text
        assert_names_its_origin(json.loads(metadata), pair)
        document = PdfReader(pdf)
        [page] = document.pages
        assert page.mediabox.width == pytest.approx(inches * 72, abs=2)
        assert "hidden1 unit 2" in page.extract_text().replace("\n", " ")
        assert_names_its_origin(json.loads(document.metadata.subject), pair)


def test_images_without_a_browser_say_what_to_do(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(figure_files.shutil, "which", lambda name: None)
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
