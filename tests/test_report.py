"""Files that anybody may open: what is in them, and that it is text."""

import json

import pytest

from bnviz import export, paper, tables, webpage
from bnviz.about import change_about
from bnviz.report import report
from bnviz.store import StoreError, open_run
from bnviz.webpage import Part

from .test_lab import recorded

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def pair(root):
    return [
        open_run(root / recorded(root, number, kind))
        for number, kind in ((1, "none"), (2, "batch"))
    ]


def test_what_users_wrote_is_text(pair):
    for run in pair:
        change_about(run, name=HOSTILE[:100], tags=["<b>"], note=HOSTILE)
    page = report(pair, "hidden2", 3).decode()
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert "&lt;img src=x" in page
    hostile = webpage.render(HOSTILE, [Part(HOSTILE, HOSTILE, None, HOSTILE, HOSTILE)], origin())
    assert b"<img src=x" not in hostile
    assert b"<script>alert" not in hostile


def origin():
    return tables.origin([]) | {"runs": {HOSTILE: {}}}


def test_what_is_not_known_is_a_dash(pair):
    page = report(pair, "hidden2", None, target=0.999).decode()
    assert "NA" not in page.split("Steps to an accuracy")[1].split("</table>")[0]
    assert "<td>–</td>" in page


def test_a_report_needs_no_percentiles(root, tmp_path):
    run = open_run(root / recorded(root, 1, "none", records=0))
    [path] = export.export([run], tmp_path, [], ["report"])
    assert b"Runs" in path.read_bytes()
    [path] = export.export([run], tmp_path, ["accuracy"], ["csv"])
    assert "accuracy" in path.read_text()
    with pytest.raises(StoreError, match="no percentiles of hidden2 are recorded yet"):
        export.export([run], tmp_path, ["percentiles"], ["csv"])
    with pytest.raises(StoreError, match="no percentiles of hidden2 are recorded yet"):
        export.export([run], tmp_path, [], ["html"])


def test_damage_is_told_in_what_is_exported(root):
    run = open_run(root / recorded(root, 1, "none"))
    [part] = run.paths.table("percentiles").iterdir()
    part.write_bytes(b"garbage")
    table = tables.percentiles_table([run], "hidden2", 0)
    assert table.empty
    content = tables.to_csv(table, tables.origin([run])).decode()
    damaged = dict(line[2:].split(": ", 1) for line in content.splitlines() if line[0] == "#")
    assert json.loads(damaged["damaged_and_left_out"]) == {run.run_id: [f"percentiles/{part.name}"]}


def test_the_papers_numbers_name_the_paper(pair):
    assert "paper" not in tables.origin(pair)
    assert "1502.03167" in tables.origin([], with_paper=True)["paper"]
    page = webpage.render("x", [], tables.origin([], with_paper=True)).decode()
    assert paper.CITATION.replace("&", "&amp;") in page
