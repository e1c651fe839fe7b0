"""The dashboard in a real browser, on real MNIST: the server, the worker and Chromium as users have
them. A missing browser fails these tests; `make test` installs one."""

import json
import re
import socket

import pytest
from playwright.sync_api import expect

from bnviz import processes
from bnviz.config import RunConfig
from bnviz.status import State
from bnviz.store import list_run_ids, open_run

from .conftest import stop_all
from .dashboard import Server, chromium

expect.set_options(timeout=60_000)

POINTS = "Number(document.querySelector('.bnviz-chart .plot')?.dataset.points ?? 0)"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "runs")
    yield server
    server.kill()
    stop_all(server.root)


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    page.on(
        "request",
        lambda r: (
            r.url.startswith(("http", "ws"))
            and "127.0.0.1" not in r.url
            and complaints.append(f"left this machine: {r.url}")
        ),
    )
    page.complaints = complaints
    yield page
    context.close()


def start_runs(page, server, query):
    """Press Start and wait for both runs' first points."""
    page.goto(server.url + query)
    page.get_by_role("button", name="Start Figure 1").click()
    page.wait_for_function(f"{POINTS} > 20")
    return [open_run(server.root / run_id) for run_id in sorted(list_run_ids(server.root))]


def grown(page, by=20):
    before = page.evaluate(POINTS)
    page.wait_for_function(f"{POINTS} >= {before + by}")


def states(page, word):
    """The rows of runs in a state."""
    return page.locator('[class*="st-key-row-"]', has_text=word)


def inside(page, subplot):
    """The box of a panel between its axes."""
    return page.locator(f'.bnviz-chart .nsewdrag[data-subplot="{subplot}"]').bounding_box()


def layout(page, axis):
    return page.evaluate(f"document.querySelector('.bnviz-chart .plot').layout.{axis}.range")


def test_start_watch_zoom_and_cancel(page, server):
    runs = start_runs(page, server, "?steps=500000")
    assert {run.config.model.normalization for run in runs} == {"none", "batch"}
    expect(states(page, "running")).to_have_count(2)
    grown(page)

    # Zoom into the panel of the run without BN by dragging, as a user does.
    panel = inside(page, "x2y2")
    page.mouse.move(panel["x"] + 20, panel["y"] + 40)
    page.mouse.down()
    page.mouse.move(panel["x"] + 120, panel["y"] + 160, steps=5)
    page.mouse.up()
    page.wait_for_function(
        "document.querySelector('.bnviz-chart .plot').layout.xaxis2.range[1] < 400000"
    )
    zoomed = layout(page, "xaxis2"), layout(page, "yaxis2")
    page.locator(".bnviz-chart .legend .traces", has_text="With BN").locator(
        ".legendtoggle"
    ).click()
    page.wait_for_function(
        "document.querySelector('.bnviz-chart .plot').data"
        ".some(t => t.name === 'With BN' && t.visible === 'legendonly')"
    )
    panel = inside(page, "x2y2")
    page.mouse.move(panel["x"] + 60, panel["y"] + 100)
    for _ in range(3):  # several ticks
        grown(page)
        assert (layout(page, "xaxis2"), layout(page, "yaxis2")) == zoomed
        assert page.evaluate(
            "document.querySelector('.bnviz-chart .plot').data"
            ".some(t => t.name === 'With BN' && t.visible === 'legendonly')"
        )
    # A double click shows all again.
    page.mouse.dblclick(panel["x"] + 60, panel["y"] + 100)
    page.wait_for_function(
        "document.querySelector('.bnviz-chart .plot').layout.xaxis2.range[1] >= 500000"
    )

    for count in (1, 2):
        page.get_by_role("button", name="Cancel", exact=True).first.click()
        expect(states(page, "cancelled")).to_have_count(count)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert {run.status.state for run in runs} == {State.CANCELLED}
    assert page.complaints == []


def test_hover_shows_exact_values_and_stays_while_points_come(page, server):
    runs = start_runs(page, server, "?steps=500000&unit=3")
    plain = next(run for run in runs if run.config.model.normalization == "none")
    page.wait_for_function(f"{POINTS} > 500")  # a few pixels wide
    panel = inside(page, "x2y2")
    page.mouse.move(panel["x"] + 1, panel["y"] + 100)
    label = page.locator(".bnviz-chart .hoverlayer .legend")
    expect(label).to_contain_text("50th percentile")
    grown(page, 200)
    text = label.text_content().replace("\u2212", "-")
    step = int(re.match(r"[\d,]+?(?=15th)", text)[0].replace(",", ""))
    row = plain.percentiles("hidden3", 3, steps=[step]).iloc[0]
    for percentage in (15, 50, 85):
        assert f"{percentage}th percentile : {row[f'p{percentage}']:.4f}" in text


def test_reload_second_tab_and_server_restart_show_the_same_runs_still_growing(
    page, server, browser
):
    start_runs(page, server, "?steps=500000")
    address = page.url
    chosen = sorted(list_run_ids(server.root))
    assert all(f"run={run_id}" in address for run_id in chosen)

    page.reload()
    page.wait_for_function(f"{POINTS} > 20")
    grown(page)
    other = browser.new_page()
    other.goto(server.url)  # a bare address shows the newest runs
    other.wait_for_function(f"{POINTS} > 20", timeout=60_000)
    grown(other)
    other.close()

    server.kill()
    steps = [open_run(server.root / run_id).status.step for run_id in chosen]
    server.start()
    page.goto(address)
    page.wait_for_function(f"{POINTS} > 20")
    grown(page)
    assert sorted(list_run_ids(server.root)) == chosen
    for run_id, before in zip(chosen, steps, strict=True):
        status = processes.true_status(open_run(server.root / run_id))
        assert status.state is State.RUNNING
        assert status.step > before


def test_the_address_keeps_the_choices(page, server):
    page.goto(server.url)
    page.get_by_role("radio", name="Without", exact=True).click()
    field = page.get_by_role("spinbutton", name="Learning rate")
    field.fill("0.025")
    field.press("Enter")
    steps = page.get_by_role("spinbutton", name="Steps")
    steps.fill("1234")
    steps.press("Enter")
    page.wait_for_url("**steps=1234**")
    assert "lr=0.025" in page.url
    assert "bn=Without" in page.url
    page.goto(page.url)
    expect(page.get_by_role("spinbutton", name="Learning rate")).to_have_value("0.025")
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("1234")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()


def test_a_learning_rate_typed_wrong_starts_nothing(page, server):
    page.goto(server.url)
    field = page.get_by_role("spinbutton", name="Learning rate")
    for typed in ("0", "-1", "1e9"):
        field.fill(typed)
        field.press("Enter")
        expect(page.get_by_text("must be a number above 0 and at most 100")).to_be_visible()
        expect(page.get_by_role("button", name="Start 2 runs")).to_be_disabled()
        field.fill("0.1")
        field.press("Enter")
        expect(page.get_by_role("button", name="Start 2 runs")).to_be_enabled()
    assert list_run_ids(server.root) == []


def test_hostile_addresses_are_shown_as_text(page, server):
    page.goto(server.url + "?steps=5&evil=1")
    page.get_by_role("button", name="Start Figure 1").click()
    expect(states(page, "completed")).to_have_count(2)
    page.goto(server.url + "?run=../../etc/passwd&run=<img src=x onerror=alert(1)>&layer=9")
    expect(page.get_by_text("The address names a run that is not here")).to_have_count(2)
    expect(page.locator("img[src=x]")).to_have_count(0)
    assert page.complaints == []


HOSTILE = (
    "</code><img src=x onerror=window.owned=1><script>window.owned=1</script> "
    "[x](javascript:alert(1)) ../../etc/passwd"
)


def test_what_was_written_by_hand_is_shown_as_text(page, server):
    config = RunConfig().model_dump(mode="json")
    failed = {"state": "FAILED", "error": dict.fromkeys(("type", "message", "traceback"), HOSTILE)}
    statuses = {
        "failed": failed,
        "paused": {"state": "PAUSED", "reason": HOSTILE},
        "diverged": {"state": "DIVERGED", "summary": {"reason": HOSTILE, "test_accuracy": HOSTILE}},
        "strange": {"state": HOSTILE},
        "config": {"state": "COMPLETED"},
    }
    for number, (name, status) in enumerate(statuses.items()):
        directory = server.root / f"2026010{number + 1}-000000-{name}-abcdef"
        directory.mkdir(parents=True)
        status = {"steps": 9, "submitted_at": 1, "updated_at": 1, "device": HOSTILE, **status}
        (directory / "status.json").write_text(json.dumps(status))
        if name == "config":
            config["model"]["nonlinearity"] = HOSTILE
            config[HOSTILE] = 1
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "log.txt").write_text(HOSTILE)
    ids = list_run_ids(server.root)
    assert len(ids) == 5
    page.goto(server.url + "?run=" + "&run=".join(ids))
    for word in ("failed", "paused", "diverged"):
        expect(states(page, word)).to_have_count(1)
    expect(page.get_by_text(re.compile(r"cannot read .*config.json"))).to_be_visible()
    expect(page.get_by_text("status.json is not a status file")).to_be_visible()
    page.get_by_text("Traceback", exact=True).click()
    page.get_by_role("button", name="More").first.click()
    expect(page.get_by_text("window.owned").first).to_be_visible()
    page.wait_for_timeout(500)
    assert page.evaluate("window.owned") is None
    expect(page.locator("img[src=x], a[href^=javascript]")).to_have_count(0)
    assert page.complaints == []


@pytest.mark.parametrize(
    ("host", "origin", "answer"),
    [
        ("127.0.0.1", "http://127.0.0.1", "101"),
        ("localhost", "http://localhost", "101"),
        ("127.0.0.1", "http://evil.example", "403"),  # another site's page
        ("evil.example", "http://evil.example", "403"),  # a name pointed at this machine
    ],
)
def test_other_sites_cannot_control_the_dashboard(server, host, origin, answer):
    """All control goes through the page's WebSocket."""
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{server.port}\r\n"
        f"Origin: {origin}:{server.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100).split()[1].decode() == answer


def test_a_run_is_paused_changed_resumed_deleted_and_brought_back(page, server):
    [run] = [
        run
        for run in start_runs(page, server, "?steps=500000&bn=With")
        if run.config.model.normalization == "batch"
    ]
    page.get_by_role("button", name="More").click()
    rate = page.get_by_test_id("stPopoverBody").get_by_role("spinbutton")
    expect(rate).to_have_value("0.15")
    rate.fill("0.02")
    page.wait_for_timeout(2_500)  # ticks: what is typed stays, and the popover stays open
    expect(rate).to_have_value("0.02")
    page.get_by_role("button", name="Set", exact=True).click()
    mark = page.locator(".bnviz-chart .annotation", has_text="lr 0.02")
    expect(mark).to_have_count(2)  # in the accuracy panel and in the run's own
    [event] = run.events().itertuples()
    assert (event.name, event.value) == ("learning_rate", 0.02)

    page.keyboard.press("Escape")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(states(page, "paused")).to_have_count(1)
    step = run.status.step
    assert not processes.has_process(run.status)
    page.get_by_role("button", name="Resume", exact=True).click()

    expect(states(page, "running")).to_have_count(1)
    grown(page)
    assert run.status.step > step
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(states(page, "cancelled")).to_have_count(1)

    page.get_by_role("button", name="More").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text(f"Deleted {run.run_id}")).to_be_visible()
    assert list_run_ids(server.root) == []
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(states(page, "cancelled")).to_have_count(1)
    assert list_run_ids(server.root) == [run.run_id]
    assert page.complaints == []
