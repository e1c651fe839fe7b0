"""Every file that a page exports, opened and held against the store; and every address."""

import io
import json
import re
import zipfile
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import expect
from pypdf import PdfReader

from bnviz import drift
from bnviz.about import change_about
from bnviz.schema import GRID
from bnviz.store import list_run_ids, open_run
from bnviz.unbundle import unpack

from .test_browser import browser, page, server  # noqa: F401  fixtures
from .test_browser_pages import SHOWN, complaints, drawn  # noqa: F401
from .test_lab import recorded

RECORDS = 4


@pytest.fixture
def runs(server):  # noqa: F811
    """Without BN, then with BN, in one group."""
    ids = [
        recorded(server.root, number, kind, records=RECORDS)
        for number, kind in ((1, "none"), (2, "batch"))
    ]
    found = [open_run(server.root / run_id) for run_id in ids]
    for run in found:
        change_about(run, group="mine", name=f"<b>{run.config.label}</b>")
    return found


def settled(page):  # noqa: F811
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()


def download(page, button):  # noqa: F811
    with page.expect_download() as started:
        button.click()
    name = started.value.suggested_filename
    return name, started.value.path().read_bytes()


def exported(page, button="Export", count=4):  # noqa: F811
    """All files behind an Export button, by their names."""
    page.locator(".bnviz-chart .plot[data-drawn=true]").first.wait_for()
    settled(page)
    if isinstance(button, str):
        button = page.get_by_role("button", name=button, exact=True)
    button.click()
    body = page.get_by_test_id("stPopoverBody")
    buttons = body.get_by_test_id("stDownloadButton").get_by_role("button")
    expect(buttons).to_have_count(count)
    files = dict(download(page, buttons.nth(i)) for i in range(count))
    assert len(files) == count
    page.keyboard.press("Escape")
    expect(body).to_have_count(0)
    return files


def saved(page, key):  # noqa: F811
    """PNG and SVG of a chart."""
    drawn(page, key)
    chart = page.locator(f".st-key-{key} .bnviz-chart")
    return dict(
        download(page, chart.get_by_role("button", name=format)) for format in ("PNG", "SVG")
    )


def tables(files):
    """The data among the files: the same in CSV and in Parquet."""
    found = {}
    for name in files:
        if name.endswith(".parquet"):
            parquet = pq.read_table(io.BytesIO(files[name])).to_pandas()
            csv = files[name.replace(".parquet", ".csv")]
            pd.testing.assert_frame_equal(
                pd.read_csv(io.BytesIO(csv), comment="#"),
                parquet,
                check_dtype=False,
                rtol=1e-6,
            )
            found[name.removesuffix(".parquet")] = parquet
    return found


def lines(page, content, tmp_path):  # noqa: F811
    """The lines of an interactive HTML file, by legend name, as a browser without network has
    them."""
    path = tmp_path / "exported.html"
    path.write_bytes(content)
    page.goto(path.as_uri())
    plots = page.evaluate(
        """[...document.querySelectorAll('.plotly-graph-div')].map(plot => plot.calcdata.map(
             points => [points[0].trace.name, points.map(p => [p.x, p.y])]))"""
    )
    assert plots
    return plots


def assert_origin(text, runs):
    origin = json.loads(text)
    assert set(origin["runs"]) == {run.run_id for run in runs}
    for run in runs:
        assert origin["runs"][run.run_id] == run.config.model_dump(mode="json")
    assert set(origin["versions"]) == {"bnviz", "python", "torch", "platform"}
    assert origin["exported_at"]
    assert origin.get("paper") is None or not runs


def assert_unit(table, runs, layer, unit):
    for run in runs:
        rows = table[table["run_id"] == run.run_id].reset_index(drop=True)
        stored = run.percentiles(layer, unit)
        pd.testing.assert_frame_equal(rows[stored.columns], stored)


def assert_images(files, runs):
    """PNG and SVG name where they come from."""
    for name, content in files.items():
        if name.endswith(".png"):
            assert_origin(Image.open(io.BytesIO(content)).text["Description"], runs)
        elif name.endswith(".svg"):
            svg = ElementTree.fromstring(content)
            assert_origin(svg.find("{http://www.w3.org/2000/svg}metadata").text, runs)


def assert_pdf(content, runs, words):
    document = PdfReader(io.BytesIO(content))
    assert words in document.pages[0].extract_text().replace("\n", " ")
    assert_origin(document.metadata.subject, runs)


def test_the_files_of_the_lab_and_the_look_for_a_paper(page, server, runs, complaints, tmp_path):  # noqa: F811
    page.goto(server.url + "?unit=4")
    files = exported(page, count=6)
    data = tables(files)
    assert set(data) == {"percentiles-hidden2-unit4", "accuracy"}
    assert_unit(data["percentiles-hidden2-unit4"], runs, "hidden2", 4)
    for run in runs:
        rows = data["accuracy"][data["accuracy"]["run_id"] == run.run_id]
        np.testing.assert_array_equal(rows["accuracy"], run.metrics()["accuracy"])
    assert_pdf(files["figure1-hidden2-unit4.pdf"], runs, "With BN: hidden2 unit 4")
    images = saved(page, "figure1")
    assert_images(images, runs)
    wide = Image.open(io.BytesIO(images["figure1-hidden2-unit4.png"])).width

    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_role("radio", name="paper, one column").click()
    page.keyboard.press("Escape")
    expect(page.locator(".st-key-figure1 .plot")).to_have_attribute("data-look", "print")
    narrow = saved(page, "figure1")
    assert_images(narrow, runs)
    png = Image.open(io.BytesIO(narrow["figure1-hidden2-unit4.png"]))
    assert png.width == round(3.25 * 300) < wide
    assert png.height > png.width  # its panels are below one another
    assert b"Times" in narrow["figure1-hidden2-unit4.svg"]
    pdf = exported(page, count=6)["figure1-hidden2-unit4.pdf"]
    assert PdfReader(io.BytesIO(pdf)).pages[0].mediabox.width == pytest.approx(3.25 * 72, abs=2)
    assert complaints() == []

    [figure] = lines(page, files["figure1-hidden2-unit4.html"], tmp_path)
    stored = runs[0].percentiles("hidden2", 4)
    first = next(points for name, points in figure if name == "85th percentile")
    np.testing.assert_allclose(first, stored[["step", "p85"]].to_numpy(), rtol=1e-6)


def test_the_files_of_a_comparison(page, server, runs, complaints, tmp_path):  # noqa: F811
    page.goto(server.url + "compare?target=0.82&unit=1")
    drawn(page, "sides_chart")
    settled(page)
    first, second = page.get_by_role("button", name="Export", exact=True).all()
    files = exported(page, first, 6) | exported(page, second)
    data = tables(files)
    assert set(data) == {"accuracy", "steps", "percentiles-hidden2-unit1"}
    assert list(data["steps"]["steps"]) == [2, 2]
    assert_unit(data["percentiles-hidden2-unit1"], runs, "hidden2", 1)
    assert_pdf(files["compare-test-accuracy.pdf"], runs, "test accuracy")
    assert_pdf(files["percentiles-hidden2-unit1.pdf"], runs, "Without BN")
    assert_images(saved(page, "compare_chart") | saved(page, "sides_chart"), runs)
    name, report = download(page, page.get_by_role("button", name="Report of this comparison"))
    assert name == "comparison.html"
    _, content = download(page, page.get_by_role("button", name="All of it as zip"))
    other = tmp_path / "other"
    assert sorted(unpack(io.BytesIO(content), other)) == sorted(run.run_id for run in runs)
    for run in runs:
        assert open_run(other / run.run_id).percentiles().equals(run.percentiles())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        figures = [name for name in archive.namelist() if name.startswith("figures/")]
        assert figures == ["figures/figure1.html", "figures/comparison.html"]
        assert b"Plotly.newPlot" in archive.read(figures[0])
    assert complaints() == []

    accuracy, percentiles = lines(page, report, tmp_path)
    stored = runs[1].metrics()[["step", "accuracy"]].to_numpy()
    np.testing.assert_allclose(dict(accuracy)["With BN"], stored, rtol=1e-6)
    stored = runs[0].percentiles("hidden2", 1)[["step", "p15"]].to_numpy()
    np.testing.assert_allclose(dict(percentiles[::-1])["15th percentile"], stored, rtol=1e-6)
    assert_origin(page.locator("#origin").text_content(), runs)
    text = page.locator("body").inner_text()
    assert "<b>With BN</b>" in text  # what users wrote is text
    assert "model.normalization" in text
    page.get_by_text(runs[0].run_id).nth(1).click()
    expect(page.get_by_text('normalization = "none"')).to_be_visible()


def test_the_files_of_distributions(page, server, runs, complaints, tmp_path):  # noqa: F811
    run = runs[1]
    query = f"distributions?of={run.run_id}&dunit=3&at_step=2&many=true&drift=shift+of+the+median"
    page.goto(server.url + query)
    drawn(page, "many_chart")
    files = exported(page, "Export the map") | exported(page, "Export the percentiles")
    for button in page.get_by_role("button", name="Export", exact=True).all():
        files |= exported(page, button)
    data = tables(files)
    steps, grid = run.grid("hidden2")
    shift = drift.MEASURES["median_shift"].values(grid, GRID, "sigmoid")
    moved = data["drift-hidden2-median_shift"]
    assert list(moved["step"]) == list(np.repeat(steps, 5))
    np.testing.assert_allclose(moved["median_shift"].to_numpy().reshape(shift.shape), shift)
    assert_unit(data["percentiles-hidden2-unit3"], [run], "hidden2", 3)
    [row] = data["distribution-hidden2-unit3-step2"].to_dict("records")
    assert (row["step"], row["unit"]) == (2, 3)
    assert row["p50"] == run.percentiles("hidden2", 3, steps=[2])["p50"].iloc[0]
    pd.testing.assert_frame_equal(data["percentiles-hidden2"], run.percentiles("hidden2"))
    assert_pdf(files["percentiles-hidden2.pdf"], [run], "unit 4")
    assert_pdf(files["drift-hidden2-median_shift.pdf"], [run], "unit")
    keys = ("heatmap", "bands_chart", "one_step", "many_chart")
    images = {name: file for key in keys for name, file in saved(page, key).items()}
    assert len(images) == 8
    assert_images(images, [run])
    assert complaints() == []
    [[[_, points]]] = lines(page, files["distribution-hidden2-unit3-step2.html"], tmp_path)
    np.testing.assert_allclose([x for x, _ in points], grid[2, 3], rtol=1e-6)


def test_the_files_of_a_sweep_and_of_the_paper(page, server, runs, complaints):  # noqa: F811
    page.goto(server.url + "sweeps")
    files = exported(page)
    table = tables(files)["sweep"]
    assert list(table["model.normalization"]) == ["none", "batch"]
    assert_pdf(files["sweep.pdf"], runs, "test accuracy")
    assert_images(saved(page, "sweep_chart"), runs)
    page.goto(server.url + "paper")
    files = exported(page)
    [(name, curves)] = tables(files).items()
    assert name == "figure1-paper"
    assert set(curves["figure"]) == {"fig1a", "fig1b_without_bn", "fig1c_with_bn"}
    images = saved(page, "paper_chart")
    assert_images(images, [])
    assert all(b"1502.03167" in image for image in images.values())
    assert b"1502.03167" in files["figure1-paper.html"]
    assert b"1502.03167" in files["figure1-paper.csv"]
    assert complaints() == []


def test_pdf_without_a_chromium_says_what_to_do(page, server, runs):  # noqa: F811
    server.kill()
    server.start({"PATH": "/nonexistent", "BROWSER_PATH": ""})
    page.goto(server.url)
    settled(page)
    page.get_by_role("button", name="Export", exact=True).click()
    button = page.get_by_role("button", name="PDF")
    expect(button).to_be_disabled()
    button.hover(force=True)
    expect(page.get_by_text("PDF needs Chromium or Chrome").first).to_be_visible()


ADDRESSES = {
    "": {
        "preset": "lr-sweep",
        "bn": "With",
        "nonlinearity": "relu",
        "lr": "0.25",
        "init_std": "0.2",
        "batch": "30",
        "seed": "7",
        "steps": "900",
        "pixels": "grey",
        "layer": "hidden1",
        "unit": "2",
        "paper": "true",
        "live": "false",
    },
    "runs": {
        "search": "with bn",
        "states": "completed",
        "columns": ["State", "Id"],
        "archived": "true",
    },
    "compare": {
        "measure": "test loss",
        "x": "epoch",
        "logx": "true",
        "logy": "true",
        "smooth": "0.5",
        "seeds": "false",
        "target": "0.83",
        "baseline": "20260101-000002-figure1-batch-abc122",
        "layer": "hidden1",
        "unit": "2",
    },
    "distributions": {
        "of": "20260101-000002-figure1-batch-abc122",
        "dlayer": "hidden1",
        "dunit": "2",
        "drift": "dead units",
        "percentages": ["5", "50", "95"],
        "at_step": "2",
        "many": "true",
    },
    "sweeps": {
        "sweep_preset": "std-sweep",
        "sweep_steps_std-sweep": "77",
        "sweep_std-sweep_model.init_std": "0.1, 0.2",
        "group": "mine",
        "against": "model.normalization",
    },
    "method": {"of": "20260101-000002-figure1-batch-abc122"},
    "paper": {"live": "false"},
}


@pytest.mark.parametrize("path", ADDRESSES)
def test_the_address_holds_the_state_of_each_page(page, server, runs, path):  # noqa: F811
    """Opened, reloaded, and opened elsewhere, it stays what it is."""
    for run in runs:  # of the sweep
        assert run.config.model.normalization in ("none", "batch")
    asked = {k: v if isinstance(v, list) else [v] for k, v in ADDRESSES[path].items()}
    query = "&".join(f"{key}={value}" for key, values in asked.items() for value in values)
    page.goto(f"{server.url}{path}?{query}")
    for _ in range(2):
        shown = SHOWN.get(path, ".bnviz-chart .plot[data-drawn=true]")
        page.locator(shown).first.wait_for()
        settled(page)
        page.wait_for_timeout(300)
        expect(page.get_by_text("The address")).to_have_count(0)
        held = page.evaluate(
            """() => { const held = {};
                 for (const [key, value] of new URLSearchParams(location.search))
                   (held[key] ??= []).push(value);
                 return held; }"""
        )
        assert {key: held.get(key) for key in asked} == asked
        page.goto(page.url)


def test_a_changed_choice_changes_the_address(page, server, runs):  # noqa: F811
    page.goto(server.url + "distributions")
    drawn(page, "one_step")
    page.get_by_role("combobox", name=re.compile("Unit")).click()
    page.get_by_role("option", name="4", exact=True).click()
    page.wait_for_url("**dunit=4**")
    page.get_by_role("slider").press("ArrowRight")
    page.wait_for_url("**at_step=1**")
    page.reload()
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", "1")
    expect(drawn(page, "bands_chart")).to_contain_text("hidden2 unit 4")


def test_a_zoom_brings_all_points_and_a_double_click_takes_them_back(page, server, complaints):  # noqa: F811
    run = open_run(server.root / recorded(server.root, 1, "none", records=5_000, hidden=(2,)))
    for path, key, axis in (("distributions", "bands_chart", "x"), ("", "figure1", "x2")):
        page.goto(server.url + path)
        plot = drawn(page, key)
        title = plot.locator(f".{axis}title")
        expect(title).to_contain_text("of 5,000 points)")
        page.evaluate(
            """([key, axis]) => Plotly.relayout(document.querySelector(`.st-key-${key} .plot`),
                 {[`${axis.replace("x", "xaxis")}.range`]: [1000, 1100]})""",
            [key, axis],
        )
        expect(title).to_have_text("step (all 101 points in view)")
        drawn_x = page.evaluate(
            """([key, axis]) => [...document.querySelector(`.st-key-${key} .plot`).calcdata.find(
                 points => (points[0].trace.xaxis ?? "x") === axis).map(p => p.x)]""",
            [key, axis],
        )
        assert [x for x in drawn_x if 1000 <= x <= 1100] == list(range(1000, 1101))
        box = plot.locator(f'.nsewdrag[data-subplot^="{axis}y"]').bounding_box()
        page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(title).to_contain_text("of 5,000 points)")
    assert len(list_run_ids(server.root)) == 1
    assert len(run.percentiles("hidden1", 0)) == 5_000
    assert complaints() == []
