"""The command line: `python -m bnviz --help`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bnviz import export as exporting
from bnviz import jobs, store
from bnviz.config import ConfigError, find_preset, parse_setting
from bnviz.config import presets as all_presets
from bnviz.status import UNFINISHED, State
from bnviz.store import Run, StoreError

app = typer.Typer(
    help="Experiments about internal covariate shift (Ioffe & Szegedy, 2015).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Root = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of the runs; by default $BNVIZ_ROOT, else ./runs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

UNSUCCESSFUL = {State.FAILED, State.LOST}
"""End states that make `run` exit with an error. DIVERGED is a result."""


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake gets its sentences on stderr and exit status 2, and no traceback."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            print(f"bnviz: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    except StoreError as error:
        print(f"bnviz: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _root(chosen: Path | None) -> Path:
    root = chosen or store.default_root()
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is not a folder; choose another with --root or BNVIZ_ROOT")
    return root


def _find(root: Path | None, run_id: str) -> Run:
    return store.open_run(store.run_directory(_root(root), run_id))


@app.command()
def run(
    preset: Annotated[str, typer.Argument(help="Name of a preset, or a .toml file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="e.g. model.normalization=none"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    root: Root = None,
) -> None:
    """Start the runs of a preset; print their ids; wait for them, showing progress."""
    with _plain_errors():
        experiment = find_preset(preset)
        overrides = dict(map(parse_setting, settings or []))
        configs = {name: c.replace(overrides) for name, c in experiment.runs.items()}
        started = []
        for name, config in configs.items():
            run_id = jobs.submit(config, _root(root), f"{experiment.name}-{name}")
            print(run_id, flush=True)
            started.append(_find(root, run_id))
        if detach:
            return
        try:
            _follow(started)
        except KeyboardInterrupt:
            _cancel_all(started)
            raise typer.Exit(130) from None
    for each in started:
        status = jobs.true_status(each)
        if status.state in UNSUCCESSFUL:
            error = status.error
            reason = f"{error.type}: {error.message}" if error else "its process is gone"
            print(f"bnviz: {each.run_id}: {reason}; see {each.paths.log}", file=sys.stderr)
            raise typer.Exit(1)


def _follow(runs: list[Run]) -> None:
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(12),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[accuracy]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {
            run.run_id: progress.add_task(
                run.config.label, total=run.status.steps, speed="starting", accuracy=""
            )
            for run in runs
        }
        unfinished = True
        while unfinished:
            unfinished = False
            for run in runs:
                status = jobs.true_status(run)
                state = status.state
                unfinished |= state in UNFINISHED
                speed = (
                    f"{status.steps_per_s:,.0f} steps/s" if status.steps_per_s else state.lower()
                )
                accuracy = status.test_accuracy
                progress.update(
                    tasks[run.run_id],
                    completed=status.step,
                    speed=speed,
                    accuracy="" if accuracy is None else f"accuracy {accuracy:.4f}",
                )
            time.sleep(0.2)


def _cancel_all(runs: list[Run]) -> None:
    for run in runs:
        if jobs.true_status(run).state in UNFINISHED:
            jobs.cancel(run)
    for run in runs:
        state = jobs.wait_until_finished(run, timeout_s=10)
        print(f"bnviz: {run.run_id} {state} at step {run.status.step:,}", file=sys.stderr)


def _summary(run: Run) -> dict[str, Any]:
    status = jobs.true_status(run)
    summary = {**status.summary, "test_accuracy": status.test_accuracy}
    return {"run_id": run.run_id, **status.model_dump(mode="json"), "summary": summary}


@app.command("list")
def list_runs(root: Root = None, as_json: AsJson = False) -> None:
    """List the runs, newest first."""
    with _plain_errors():
        folder = _root(root)
        summaries = []
        for run_id in store.list_run_ids(folder):
            try:
                summaries.append(_summary(_find(folder, run_id)))
            except StoreError as error:
                print(f"bnviz: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(summaries, indent=2))
        return
    if not summaries:
        print(f"no runs in {folder}; start some with: python -m bnviz run figure1", file=sys.stderr)
    for s in summaries:
        accuracy = s["summary"].get("test_accuracy")
        shown = "" if accuracy is None else f"accuracy {accuracy:.4f}"
        print(f"{s['run_id']:<48} {s['state']:<10} {s['step']:>10,}/{s['steps']:<10,} {shown}")


@app.command()
def show(run_id: str, root: Root = None, as_json: AsJson = False) -> None:
    """Show one run: its state, its results, and where it differs from the defaults."""
    with _plain_errors():
        run = _find(root, run_id)
        summary = {**_summary(run), "config": run.config.model_dump(mode="json")}
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    for key in ("run_id", "state", "step", "steps", "steps_per_s", "eta_s", "device"):
        print(f"{key:<20} {summary[key]}")
    for key, value in summary["summary"].items():
        print(f"{key:<20} {value}")
    for path, value in run.config.differences().items():
        print(f"{path:<20} {value}")
    print(f"{'directory':<20} {run.paths.directory}")
    if run.status.error:
        print(run.status.error.traceback)


@app.command()
def cancel(run_id: str, root: Root = None) -> None:
    """Stop a run; what it has recorded is kept."""
    with _plain_errors():
        run = _find(root, run_id)
        jobs.cancel(run)
        print(jobs.wait_until_finished(run, timeout_s=10))


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the presets."""
    with _plain_errors():
        available = all_presets()
    if as_json:
        described = {
            preset.name: {
                "title": preset.title,
                "why": preset.why,
                "runs": {n: c.model_dump(mode="json") for n, c in preset.runs.items()},
            }
            for preset in available.values()
        }
        print(json.dumps(described, indent=2))
        return
    for preset in available.values():
        print(f"{preset.name:<12} {preset.title} ({', '.join(preset.runs)})")


@app.command()
def export(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN…")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write to.")],
    what: Annotated[str, typer.Option(help="Tables.")] = ",".join(exporting.TABLE_NAMES),
    format: Annotated[
        str, typer.Option(help="csv, parquet, html, png, svg, pdf; several with commas.")
    ] = "csv",
    layer: Annotated[str | None, typer.Option(help="Default: the last hidden layer.")] = None,
    unit: Annotated[int | None, typer.Option(help="Default: the typical unit.")] = None,
    root: Root = None,
) -> None:
    """Write figure data and figures to files; print their names."""
    with _plain_errors():
        tables = _choices("--what", what, exporting.TABLE_NAMES)
        formats = _choices("--format", format, exporting.DATA_FORMATS + exporting.FIGURE_FORMATS)
        runs = [_find(root, run_id) for run_id in run_ids]
        for path in exporting.export(runs, to, tables, formats, layer, unit):
            print(path)


def _choices(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    chosen = [item.strip() for item in text.split(",") if item.strip()]
    if unknown := [item for item in chosen if item not in allowed]:
        raise ConfigError(
            [f"{option}: unknown {', '.join(unknown)}; choose of {', '.join(allowed)}"]
        )
    return chosen


@app.command()
def dashboard(root: Root = None) -> None:
    """Open the dashboard, as `streamlit run app.py` does."""
    with _plain_errors():
        folder = _root(root)
    home = Path(__file__).resolve().parent.parent
    os.environ["BNVIZ_ROOT"] = str(folder.absolute())
    os.chdir(home)  # where .streamlit/config.toml is
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(home / "app.py")])


if __name__ == "__main__":
    app(prog_name="python -m bnviz")
