"""The pages beside the Lab in a real browser, with real runs."""

import io
import zipfile
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from bnviz import jobs
from bnviz.about import change_about, read_about
from bnviz.presets import find_preset
from bnviz.status import State
from bnviz.store import list_run_ids, open_run
from bnviz.unbundle import unpack

from .conftest import small
from .test_browser import browser, layout, page, server  # noqa: F401  fixtures
from .test_lab import recorded

MISSED_AT_FIRST = ("/_stcore/health", "/_stcore/host-config")
"""Streamlit looks for its server below the page's own path first."""

ROW, HEADER = 35, 36  # pixels

SHOWN = {
    "runs": "canvas",
    "method": '[data-testid="stAlert"]',
    "paper?figure=Figure+4": '[data-testid="stDataFrame"]',
}
"""What is there on a page without a chart when it is drawn."""


@pytest.fixture
def complaints(page):  # noqa: F811
    """What the browser complained of, but for what Streamlit itself does on every page."""
    failed = []
    page.on("response", lambda r: r.status >= 400 and failed.append(r.url))
    return lambda: (
        [c for c in page.complaints if "404" not in c]
        + [url for url in failed if not url.endswith(MISSED_AT_FIRST)]
    )


def select_row(page, number):  # noqa: F811
    box = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(box["x"] + 16, box["y"] + HEADER + ROW * (number + 0.5))


def drawn(page, key):  # noqa: F811
    """Wait for a chart; returns its element."""
    plot = page.locator(f".st-key-{key} .bnviz-chart .plot")
    expect(plot).to_have_attribute("data-drawn", "true")
    return plot


def zoom_in(page, plot, key, number=""):  # noqa: F811
    """Drag over a part of a panel of a chart; returns the script that tells its ranges."""
    panel = plot.locator(f'.nsewdrag[data-subplot="x{number}y{number}"]')
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 130, steps=5)
    page.mouse.up()
    return f"""(() => {{ const l = document.querySelector('.st-key-{key} .plot').layout;
               return [l.xaxis{number}.range, l.yaxis{number}.range]; }})()"""


def test_runs_are_found_selected_tagged_packed_and_imported(page, server, complaints, tmp_path):  # noqa: F811
    for number, kind in enumerate(["none", "batch", "none"], start=1):
        recorded(server.root, number, kind)
    page.goto(server.url + "runs")
    expect(page.get_by_text("3 of 3 runs, 0 active.")).to_be_visible()
    select_row(page, 1)
    expect(page.get_by_text("1 selected.")).to_be_visible()
    page.get_by_role("button", name="Name, tags, note").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("<b>my</b> run")
    page.get_by_role("textbox", name="Note").fill("two words")
    page.get_by_role("button", name="Save").click()
    run = open_run(server.root / list_run_ids(server.root)[1])
    page.wait_for_timeout(500)
    expect(page.get_by_text("1 selected.")).to_be_visible()  # rows stay where they are
    assert (read_about(run).name, read_about(run).note) == ("<b>my</b> run", "two words")

    page.keyboard.press("Escape")
    with page.expect_download() as started:
        page.get_by_role("button", name="Download as zip").click()
    packed = Path(started.value.path()).read_bytes()
    assert unpack(io.BytesIO(packed), tmp_path / "other") == [run.run_id]
    again = open_run(tmp_path / "other" / run.run_id)
    assert again.percentiles().equals(run.percentiles())

    # A new run waits while there is a selection.
    recorded(server.root, 4, "batch")
    expect(page.get_by_text("1 new: clear the selection to see them.")).to_be_visible()
    expect(page.get_by_text("1 selected.")).to_be_visible()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text(f"Deleted {run.run_id}.")).to_be_visible()
    expect(page.get_by_text("3 of 3 runs, 0 active.")).to_be_visible()

    page.get_by_role("button", name="Import", exact=True).click()
    chooser = page.locator('input[type="file"]')
    hostile = io.BytesIO()
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("../../evil", "x")
    for name, content, answer in (
        ("evil.zip", hostile.getvalue(), "does not belong in a bundle"),
        ("mine.zip", packed, "Imported 1 runs"),
    ):
        chooser.set_input_files({"name": name, "mimeType": "application/zip", "buffer": content})
        # The file before is refused until the server has this one.
        expect(page.get_by_text("does not belong in a bundle")).to_have_count(0)
        page.get_by_role("button", name="Import it").click()
        expect(page.get_by_text(answer)).to_be_visible()
    assert len(list_run_ids(server.root)) == 4
    assert complaints() == []


def test_selected_runs_are_compared_and_the_chart_keeps_its_zoom(page, server, complaints):  # noqa: F811
    long = small(training__steps=500_000, training__evaluations=1000, trace__records=200)
    ids = [
        jobs.submit(long.replace({"model.normalization": kind}), server.root, kind)
        for kind in ("none", "batch")
    ]
    page.goto(server.url + "runs")
    expect(page.get_by_text("2 of 2 runs, 2 active.")).to_be_visible()
    select_row(page, 0)
    expect(page.get_by_text("1 selected.")).to_be_visible()
    select_row(page, 1)
    expect(page.get_by_text("2 selected.")).to_be_visible()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url("**/compare**")
    assert all(f"run={run_id}" in page.url for run_id in ids)
    plot = drawn(page, "compare_chart")
    points = "document.querySelector('.st-key-compare_chart .plot').dataset.points"
    page.wait_for_function(f"Number({points}) > 10")
    box = plot.locator(".nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 200, steps=5)
    page.mouse.up()
    zoomed = layout(page, "xaxis")
    before = int(page.evaluate(points))
    page.wait_for_function(f"Number({points}) > {before + 4}")
    assert layout(page, "xaxis") == zoomed
    page.get_by_role("radio", name="epoch").click()
    expect(plot.locator(".xtitle")).to_have_text("epoch")
    page.wait_for_url("**x=epoch**")
    page.goto(page.url)  # the address brings all of it back
    expect(drawn(page, "compare_chart").locator(".xtitle")).to_have_text("epoch")

    page.get_by_text("Live", exact=True).click()
    page.wait_for_url("**live=false**")
    page.wait_for_timeout(1_500)  # a tick that was on its way
    before, recorded_before = page.evaluate(points), len(open_run(server.root / ids[0]).metrics())
    page.wait_for_timeout(3_000)
    assert page.evaluate(points) == before
    assert len(open_run(server.root / ids[0]).metrics()) > recorded_before  # the run goes on
    page.get_by_text("Live", exact=True).click()
    page.wait_for_function(f"Number({points}) > {before}")
    assert complaints() == []


def test_every_live_page_keeps_the_zoom_while_points_come(page, server, complaints):  # noqa: F811
    preset = find_preset("figure1")
    for name, config in preset.runs.items():
        jobs.submit(config, server.root, f"figure1-{name}")
    for path, key, number in (("distributions", "bands_chart", ""), ("paper", "ours_chart", "2")):
        page.goto(server.url + path)
        plot = drawn(page, key)
        points = f"Number(document.querySelector('.st-key-{key} .plot').dataset.points)"
        page.wait_for_function(f"{points} > 20")
        zoom = zoom_in(page, plot, key, number)
        zoomed = page.evaluate(zoom)
        assert zoomed[0][1] < 50_000
        for _ in range(3):
            before = page.evaluate(points)
            page.wait_for_function(f"{points} > {before}")
            assert page.evaluate(zoom) == zoomed
    assert complaints() == []


def test_a_click_on_the_drift_map_opens_the_unit(page, server, complaints):  # noqa: F811
    recorded(server.root, 1, "batch", hidden=(3, 5), records=6)
    page.goto(server.url + "distributions")
    heat = drawn(page, "heatmap")
    drawn(page, "bands_chart")
    box = heat.locator(".nsewdrag").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.02, box["y"] + box["height"] * 0.1)  # the top
    expect(drawn(page, "bands_chart")).to_contain_text("With BN: hidden2 unit 4")
    expect(drawn(page, "one_step")).to_contain_text("pre-activation")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", "5", timeout=60_000)
    assert complaints() == []


def test_a_sweep_from_start_to_finish(page, server, complaints):  # noqa: F811
    page.goto(server.url + "sweeps")
    rates = page.get_by_role("textbox", name="optimizer.learning_rate")
    rates.fill("0.1, 1000.0")
    rates.press("Enter")
    expect(page.get_by_text("must be a number above 0 and at most 100")).to_be_visible()
    rates.fill("0.1")
    rates.press("Enter")
    steps = page.get_by_role("spinbutton", name="Steps of each run")
    steps.fill("60")
    steps.press("Enter")
    page.get_by_role("button", name="Start 2 runs").click()
    expect(page.get_by_text("2 of 2 runs have ended", exact=True)).to_be_visible(timeout=90_000)
    runs = [open_run(server.root / run_id) for run_id in list_run_ids(server.root)]
    assert {run.status.state for run in runs} == {State.COMPLETED}
    assert {run.config.model.normalization for run in runs} == {"none", "batch"}
    [group] = {read_about(run).group for run in runs}
    assert group.startswith("lr-sweep ")
    assert complaints() == []


def test_figure_2_grows_after_one_click_keeps_its_zoom_and_is_cancelled(page, server, complaints):  # noqa: F811
    page.goto(server.url + PAPER[1])
    drawn(page, "paper_chart2")
    page.get_by_role("button", name="Start Figure 2").click()
    expect(page.get_by_text("0 of 7 runs have ended", exact=True)).to_be_visible()
    plot = drawn(page, "ours_chart2")
    points = "Number(document.querySelector('.st-key-ours_chart2 .plot').dataset.points)"
    page.wait_for_function(f"{points} > 6", timeout=120_000)
    zoom = zoom_in(page, plot, "ours_chart2")
    zoomed = page.evaluate(zoom)
    assert zoomed[0][1] < 4_800
    before = page.evaluate(points)
    page.wait_for_function(f"{points} > {before}", timeout=120_000)
    assert page.evaluate(zoom) == zoomed
    page.get_by_role("button", name="Cancel all").click()
    expect(page.get_by_text("7 of 7 runs have ended", exact=True)).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Run what is missing (7 runs)").wait_for()
    runs = [open_run(server.root / run_id) for run_id in list_run_ids(server.root)]
    assert {run.status.state for run in runs} == {State.CANCELLED}
    assert complaints() == []


PAPER = ("paper", "paper?figure=Figures+2+and+3", "paper?figure=Figure+4")

FADED_IN = """() => !document.getAnimations().some(
    a => a.playState === "running" && a.effect.getComputedTiming().iterations !== Infinity)"""
"""While an element fades in, its text has less contrast."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_passes_the_accessibility_rules(browser, server, scheme):  # noqa: F811
    """WCAG 2 A and AA, as far as axe-core can tell."""
    for number, kind in ((1, "none"), (2, "batch")):
        recorded(server.root, number, kind)
        change_about(open_run(server.root / list_run_ids(server.root)[0]), group="mine")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1400, "height": 1000})
    page = context.new_page()  # noqa: F811
    for path in ("", "runs", "compare", "distributions", "method", "sweeps", *PAPER):
        page.goto(server.url + path)
        shown = SHOWN.get(path, ".bnviz-chart .plot[data-drawn=true]")
        page.locator(shown).first.wait_for(timeout=60_000)
        page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
        page.wait_for_function(FADED_IN)
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
        assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found] == [], path
    context.close()
