"""The command line as a user types it, in processes of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from bnviz.config import RunConfig
from bnviz.status import State
from bnviz.store import list_run_ids, open_run

PROJECT = Path(__file__).resolve().parent.parent
QUICK = [
    "--set", "training.steps=150", "--set", "training.evaluations=3", "--set", "trace.records=5",
]  # fmt: skip


def bnviz(*arguments, root=None):
    command = [sys.executable, "-m", "bnviz", *map(str, arguments)]
    if root is not None:
        command += ["--root", str(root)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment)


def refused(*arguments, root=None):
    """What is said on stderr: one sentence, exit status 2, no traceback, nothing on stdout."""
    done = bnviz(*arguments, root=root)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    return line


def test_from_a_preset_to_exported_files(root, tmp_path):
    started = bnviz("run", "figure1", *QUICK, root=root)
    assert started.returncode == 0, started.stderr
    ids = started.stdout.split()
    assert [("without-bn" in ids[0]), ("with-bn" in ids[1])] == [True, True]
    assert "150/150" in started.stderr
    assert "ETA" in started.stderr

    listed = json.loads(bnviz("list", "--json", root=root).stdout)
    assert {run["run_id"]: run["state"] for run in listed} == dict.fromkeys(ids, "COMPLETED")
    assert ids[0] in bnviz("list", root=root).stdout

    shown = json.loads(bnviz("show", ids[1], "--json", root=root).stdout)
    assert shown["step"] == 150
    assert RunConfig.parse(shown["config"]).training.steps == 150
    assert "training.steps" in bnviz("show", ids[1], root=root).stdout

    written = bnviz("export", *ids, "--to", tmp_path / "out", "--format", "csv,html", root=root)
    assert written.returncode == 0, written.stderr
    [percentiles] = (tmp_path / "out").glob("percentiles-hidden3-unit*.csv")
    assert str(percentiles) in written.stdout.splitlines()
    table = pd.read_csv(percentiles, comment="#")
    unit = int(percentiles.stem.rsplit("unit", 1)[1])
    for run_id in ids:
        stored = open_run(root / run_id).percentiles("hidden3", unit)
        rows = table[table["run_id"] == run_id]
        assert list(rows["p50"].astype("float32")) == list(stored["p50"])

    again = bnviz("cancel", ids[0], root=root)
    assert again.returncode == 2
    assert "COMPLETED, so there is nothing to cancel" in again.stderr


def test_detach_returns_at_once_and_cancel_stops_the_runs(root):
    started = bnviz("run", "figure1", "--detach", root=root)
    for run_id in started.stdout.split():
        cancelled = bnviz("cancel", run_id, root=root)
        assert cancelled.stdout.strip() == "CANCELLED", cancelled.stderr


def test_ctrl_c_cancels_cleanly(root):
    command = [sys.executable, "-m", "bnviz", "run", "figure1", "--root", str(root)]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    ids = [process.stdout.readline().strip() for _ in range(2)]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert {open_run(root / run_id).status.state for run_id in ids} == {State.CANCELLED}


def test_a_failed_run_is_an_error_with_its_log_named(root):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU, and the test needs one that has none")
    done = bnviz("run", "figure1", *QUICK, "--set", "training.device=cuda", root=root)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
    assert "log.txt" in done.stderr


def test_presets_are_listed():
    assert "figure1" in bnviz("presets").stdout
    described = json.loads(bnviz("presets", "--json").stdout)
    assert set(described["figure1"]["runs"]) == {"without-bn", "with-bn"}


def test_an_empty_root_says_what_to_do(root):
    done = bnviz("list", root=root)
    assert (done.returncode, done.stdout) == (0, "")
    assert "python -m bnviz run figure1" in done.stderr
    assert json.loads(bnviz("list", "--json", root=root).stdout) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["run", "figure9"],
            "unknown preset 'figure9'; choose one of batch-sweep, bn-placement, cnn, ",
        ),
        (["run", "figure1", "--set", "model.depth=3"], "model.depth: unknown key; model has"),
        (["run", "figure1", "--set", "training.steps=0"], "a whole number from 1 to 100,000,000"),
        (["run", "figure1", "--set", "optimizer.learning_rate=nan"], "above 0 and at most 100"),
        (["run", "figure1", "--set", "optimizer.learning_rate=1e9"], "above 0 and at most 100"),
        (["run", "figure1", "--set", "training.batch_size=1"], "a batch of at least 2"),
        (["run", "figure1", "--set", "data.dataset=cats"], "must be one of mnist"),
        (["run", "figure1", "--set", "steps"], "write PATH=VALUE"),
        (["show", "../../etc/passwd"], "is not a run id"),
        (["show", "<script>"], "is not a run id"),
        (["set", "20260101-000000-x-abcdef", "steps=3"], "steps: only learning_rate can be"),
        (["set", "20260101-000000-x-abcdef", "learning_rate=fast"], "learning_rate = 'fast': must"),
        (["restore", "../../etc"], "is not a run id"),
        (["delete", "20260101-000000-x-abcdef"], "there is no run"),
        (["slots", "0"], "slots = 0: must be a whole number from 1 to 1,024"),
        (["cancel", "20260101-000000-x-abcdef"], "there is no run 20260101-000000-x-abcdef"),
        (["export", "20260101-000000-x-abcdef", "--to", "/tmp/x"], "there is no run"),
    ],
)
def test_a_users_mistake_gets_one_sentence_and_nothing_starts(root, arguments, sentence):
    assert sentence in refused(*arguments, root=root)
    assert list_run_ids(root) == []


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["list"], ["run", "figure1"], ["dashboard"]):
        assert "is not a folder" in refused(*command, root=tmp_path / "file")


def test_the_dashboard_opens_on_its_root(root, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("STREAMLIT_SERVER_HEADLESS", "true")
    monkeypatch.setenv("STREAMLIT_SERVER_PORT", str(port))
    command = [sys.executable, "-m", "bnviz", "dashboard", "--root", str(root)]
    server = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/_stcore/health"
                assert urllib.request.urlopen(url, timeout=5).read() == b"ok"
                break
            time.sleep(0.1)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
    assert server.returncode == 0


def test_an_unknown_export_format_is_refused(root):
    sentence = refused("export", "x", "--to", "/tmp/x", "--format", "gif", root=root)
    assert "--format: unknown gif; choose of csv, parquet, html, png, svg, pdf" in sentence


def test_a_run_is_controlled_from_the_command_line(root):
    long = [*QUICK[:-6], "--set", "training.steps=1000000", "--detach"]
    ids = bnviz("run", "figure1", *long, root=root).stdout.split()
    run = open_run(root / ids[0])
    deadline = time.monotonic() + 60
    while run.status.state is not State.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert bnviz("set", ids[0], "learning_rate=0.03", root=root).returncode == 0
    assert bnviz("pause", ids[0], root=root).stdout.strip() == "PAUSED"
    assert list(run.events()["value"]) == [0.03]
    assert bnviz("resume", ids[0], root=root).stdout.strip() == "QUEUED"
    for run_id in ids:
        assert bnviz("cancel", run_id, root=root).stdout.strip() == "CANCELLED"
    [again] = bnviz("retry", ids[0], "--set", "training.steps=5", root=root).stdout.split()
    assert open_run(root / again).config.training.steps == 5
    assert bnviz("delete", ids[0], root=root).returncode == 0
    assert ids[0] not in bnviz("list", root=root).stdout
    assert bnviz("restore", ids[0], root=root).returncode == 0
    assert ids[0] in bnviz("list", root=root).stdout
    bnviz("delete", ids[0], root=root)
    assert "1 removed" in bnviz("empty-trash", root=root).stderr
    assert bnviz("slots", "3", root=root).stdout.split()[:2] == ["cpu", "3"]


def test_runs_travel_as_a_zip_file(root, tmp_path):
    ids = bnviz("run", "figure1", "--set", "training.steps=20", root=root).stdout.split()
    file = tmp_path / "runs.zip"
    assert bnviz("pack", *ids, "--to", str(file), root=root).stdout.strip() == str(file)
    other = tmp_path / "other"
    assert sorted(bnviz("import", str(file), root=other).stdout.split()) == sorted(ids)
    for run_id in ids:
        mine, theirs = (open_run(folder / run_id) for folder in (root, other))
        assert theirs.metrics().equals(mine.metrics())
        assert theirs.status.state == "COMPLETED"
    assert "already; delete that one first" in refused("import", file, root=other)
    assert "is no readable zip file" in refused("import", __file__, root=other)
