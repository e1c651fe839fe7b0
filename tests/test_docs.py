"""The documents say what the code does."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args

import duckdb
import pyarrow.parquet as pq
import pytest
import typer.main

import bnviz
from bnviz import __main__, folders, presets, schema, sources
from bnviz.accuracies import Accuracies, Inference
from bnviz.config import RunConfig, parse_setting
from bnviz.status import RunError, State, Status
from bnviz.store import RunPaths, list_run_ids

from .conftest import small, stop_all, submit_and_wait
from .test_architecture import LEVELS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
DATA_SETS = (ROOT / "docs" / "data-sets.md").read_text()
FORMAT = (ROOT / "docs" / "data-format.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
EXAMPLE_RUN = "runs/20260131-235959-figure1-with-bn-1a2b3c"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("docs") / "runs"
    yield submit_and_wait(small(), root)
    stop_all(root)


def section(text, heading):
    return re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def table(text):
    """Cells of a Markdown table, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def code(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


@pytest.mark.parametrize("name", list(schema.TABLES))
def test_the_columns_are_those_of_the_schema(name):
    documented = [
        (column, row[1]) for row in table(section(FORMAT, name)) for column in names(row[0])
    ]
    types = {"float": "float32", "double": "float64"}
    assert documented == [
        (field.name, types.get(str(field.type), str(field.type))) for field in schema.TABLES[name]
    ]


def test_the_keys_and_states_are_those_of_the_status():
    rows = table(section(FORMAT, "status.json"))
    assert {key for row in rows for key in names(row[0])} == set(Status.model_fields)
    meanings = {names(row[0])[0]: names(row[1]) for row in rows}
    assert set(meanings["state"]) == set(State) - {State.LOST}
    assert set(meanings["error"]) == set(RunError.model_fields)
    rows = table(section(FORMAT, "inference.json"))
    documented = {key for row in rows for key in names(row[0])}
    assert documented == set(Inference.model_fields)
    in_one = next(names(row[1]) for row in rows if row[0] == "`batch_statistics`")
    assert set(in_one) == set(Accuracies.model_fields)


def test_the_files_are_those_of_a_run_directory(finished_run):
    documented = {name.split("/")[0] for row in table(FORMAT)[:12] for name in names(row[0])}
    present = {path.name for path in finished_run.paths.directory.iterdir()}
    not_needed = {"checkpoint-previous.pt", "about.json", "predictions.parquet"}
    assert present == documented - not_needed
    transient = {"run", ".reserve"}
    assert {p.name for p in vars(RunPaths(Path("run"))).values()} - transient <= documented
    assert set(finished_run.status.summary) <= set(
        names(next(row[1] for row in table(FORMAT) if row[0] == "`summary`"))
    )


def test_every_module_is_described_on_its_level():
    described = {}
    for level, cell, _ in table(section(ARCHITECTURE, "Modules, and which way imports point")):
        name = names(cell)[0].removesuffix(".py").rstrip("/")
        described["app" if name == "app" else f"bnviz.{name}"] = int(level)
    expected = {
        name: level
        for name, level in LEVELS.items()
        if name.count(".") == 1 or name == "app"  # a package is described as a whole
    }
    assert described == expected


def test_every_command_of_the_readme_exists():
    commands = typer.main.get_command(__main__.app).commands
    shown = [
        shlex.split(line)[3:]
        for block in code(README, "sh")
        for line in block.splitlines()
        if line.startswith("python -m bnviz")
    ]
    named = {word for block in code(README, "sh") for word in re.findall(r"[\w-]+", block)}
    assert set(commands) <= named
    for name, *words in shown:
        options = {option for p in commands[name].params for option in p.opts}
        assert {word for word in words if word.startswith("--")} <= options
    make = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+) ", "\n".join(code(README, "sh"))):
        assert re.search(rf"^{target}:", make, flags=re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_examples_run(finished_run):
    def at_the_run(text):
        return text.replace(EXAMPLE_RUN, str(finished_run.paths.directory))

    expected = finished_run.percentiles("hidden3", 7)
    for block in code(FORMAT, "python"):
        variables = {}
        exec(at_the_run(block), variables)
        if "unit" in variables:
            assert list(variables["unit"]["p50"]) == list(expected["p50"])
    [query] = code(FORMAT, "sql")
    assert list(duckdb.sql(at_the_run(query)).df()["p50"]) == list(expected["p50"])

    [block] = code(README, "python")
    beginning, training = block.split("for record in ")
    exec(at_the_run(beginning), variables := {})
    assert "bnviz.train(bnviz.RunConfig())" in training
    assert next(bnviz.train(bnviz.RunConfig())).step == 0


def test_the_data_sets_are_those_there_are():
    documented = [names(row[0])[0] for row in table(DATA_SETS)]
    dataset = RunConfig.model_fields["data"].annotation.model_fields["dataset"]
    assert sorted(documented) == sorted(get_args(dataset.annotation))
    assert all(f"`{ending}`" in DATA_SETS for ending in folders.ENDINGS)
    for row in table(DATA_SETS):
        size = sources.download_size(names(row[0])[0]) / 1e6
        assert (f"({size:.0f} MB)" in row[2]) == (size > 0)


def test_own_images_are_trained_on_as_documented(root):
    [block] = code(DATA_SETS, "python")
    variables = {}
    exec(block, variables)
    run = variables["run"]
    assert run.status.state is State.COMPLETED
    assert run.status.summary["train_examples"] == 800
    assert list_run_ids(root) == [run.run_id]


def test_settings_in_the_examples_of_data_sets_exist():
    for block in code(DATA_SETS, "sh"):
        settings = re.findall(r"--set (\S+)=(\S+)", block)
        assert settings
        RunConfig().replace({path: parse_setting(f"{path}={v}")[1] for path, v in settings})


def test_a_finished_table_is_one_file_that_any_reader_opens(finished_run):
    for name, columns in schema.TABLES.items():
        parts = list(finished_run.paths.table(name).iterdir())
        assert len(parts) == (0 if name == "events" else 1)  # nothing happened to this run
        if not parts:
            continue
        [part] = parts
        stored = pq.read_schema(part)
        assert stored.names == columns.names
        for field in stored:
            assert set(field.metadata) >= {b"unit", b"meaning"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
                assert anchor in {re.sub(r"\W+", "-", h.lower()).strip("-") for h in headings}


def test_the_pinned_versions_are_those_installed():
    import importlib.metadata

    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert importlib.metadata.version(name).split("+")[0] == version


@pytest.mark.parametrize(
    "script",
    [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("experiments/*.py")],
    ids=lambda script: script.name,
)
def test_each_script_finds_what_it_imports(script):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_every_preset_says_why_and_only_what_differs():
    for path in sorted((ROOT / "experiments").glob("*.toml")):
        values = tomllib.loads(path.read_text())
        assert len(values["why"]) > 100
        assert presets.load_preset(path).runs
