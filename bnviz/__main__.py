"""The command line: `python -m bnviz --help`."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bnviz import bundle, fetch, jobs, progress, queue, store, style, unbundle
from bnviz import export as exporting
from bnviz import presets as named
from bnviz.config import ConfigError, allowed, parse_setting
from bnviz.processes import true_status
from bnviz.status import State, Status
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

UNSUCCESSFUL = {State.FAILED, State.LOST, State.PAUSED}
"""States that make `run` exit with an error. DIVERGED is a result."""


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake gets its sentences on stderr and exit status 2, and no traceback."""
    try:
        yield
    except (ConfigError, StoreError, fetch.FetchError) as error:
        for problem in getattr(error, "problems", [error]):
            print(f"bnviz: {problem}", file=sys.stderr)
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
        experiment = named.find_preset(preset)
        overrides = dict(map(parse_setting, settings or []))
        configs = {name: c.replace(overrides) for name, c in experiment.runs.items()}
        group = jobs.new_group(experiment.name) if experiment.sweep else ""
        titled = [(f"{experiment.name}-{name}", config) for name, config in configs.items()]
        run_ids = jobs.submit_all(titled, _root(root), group)
        print(*run_ids, sep="\n", flush=True)
        started = [_find(root, run_id) for run_id in run_ids]
        if detach:
            return
        try:
            progress.follow(started)
        except KeyboardInterrupt:
            progress.cancel_all(started)
            raise typer.Exit(130) from None
    for each in started:
        status = true_status(each)
        if status.state in UNSUCCESSFUL:
            print(f"bnviz: {each.run_id}: {_what_stopped(status)}", file=sys.stderr)
            print(f"bnviz: its output is in {each.paths.log}", file=sys.stderr)
            raise typer.Exit(1)


def _what_stopped(status: Status) -> str:
    if status.error:
        return f"{status.error.type}: {status.error.message}"
    if status.state is State.PAUSED:
        return f"paused ({status.reason or 'as requested'}); `resume` lets it go on"
    return f"{status.reason or 'its process is gone'}; `resume` lets it go on"


def _summary(run: Run) -> dict[str, Any]:
    status = true_status(run)
    summary = {**status.summary, "test_accuracy": status.test_accuracy}
    return {"run_id": run.run_id, **status.model_dump(mode="json"), "summary": summary}


@app.command("list")
def list_runs(root: Root = None, as_json: AsJson = False) -> None:
    """List the runs, newest first."""
    with _plain_errors():
        folder = _root(root)
        if folder.exists():
            with contextlib.suppress(StoreError):  # looking needs no right to write
                queue.advance(folder)
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
    for key in ("run_id", "state", "reason", "step", "steps", "steps_per_s", "eta_s", "device"):
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
def pause(run_id: str, root: Root = None) -> None:
    """Stop a run where it is, so that it can go on later."""
    with _plain_errors():
        run = _find(root, run_id)
        jobs.pause(run)
        print(jobs.wait_until_finished(run, timeout_s=10))


@app.command()
def resume(run_id: str, root: Root = None) -> None:
    """Let a run go on that is paused, lost, cancelled or failed."""
    with _plain_errors():
        run = _find(root, run_id)
        jobs.resume(run)
        print(true_status(run).state)


@app.command()
def retry(
    run_id: str,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change the new run's configuration."),
    ] = None,
    root: Root = None,
) -> None:
    """Start a new run with the configuration of another; print its id."""
    with _plain_errors():
        print(jobs.retry(_find(root, run_id), dict(map(parse_setting, settings or []))))


@app.command("set")
def set_value(
    run_id: str,
    setting: Annotated[str, typer.Argument(metavar="learning_rate=VALUE")],
    root: Root = None,
) -> None:
    """Change the learning rate of a running run, from its next update on."""
    with _plain_errors():
        path, value = parse_setting(setting)
        if path not in ("learning_rate", "optimizer.learning_rate"):
            raise ConfigError([f"{path}: only learning_rate can be changed while a run trains"])
        if not isinstance(value, int | float):
            rule = allowed("optimizer.learning_rate")
            raise ConfigError([f"learning_rate = {value!r}: must be {rule}"])
        jobs.set_learning_rate(_find(root, run_id), float(value))


@app.command()
def delete(run_id: str, root: Root = None) -> None:
    """Move a run into the trash, where it is kept for 30 days."""
    with _plain_errors():
        jobs.delete(_find(root, run_id))
    print(f"`python -m bnviz restore {run_id}` brings it back", file=sys.stderr)


@app.command()
def restore(run_id: str, root: Root = None) -> None:
    """Bring a deleted run back."""
    with _plain_errors():
        jobs.restore(_root(root), run_id)


@app.command("empty-trash")
def empty_trash(root: Root = None) -> None:
    """Remove deleted runs for good."""
    with _plain_errors():
        print(f"{jobs.empty_trash(_root(root))} removed", file=sys.stderr)


@app.command("pack")
def pack_runs(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN...")],
    to: Annotated[Path, typer.Option(help="The zip file to write.")],
    root: Root = None,
) -> None:
    """Write whole runs and their figures into one zip file, which `import` opens elsewhere."""
    with _plain_errors():
        runs = [_find(root, run_id) for run_id in run_ids]
        bundle.pack(runs, to, exporting.bundle_figures(runs))
        print(to)


@app.command("import")
def import_runs(
    file: Annotated[Path, typer.Argument(help="A zip file that `pack` or the page wrote.")],
    root: Root = None,
) -> None:
    """Add the runs of a zip file; print their ids."""
    with _plain_errors():
        for run_id in unbundle.unpack(file, _root(root)):
            print(run_id)


@app.command()
def slots(
    count: Annotated[int | None, typer.Argument(help="Set it; without, only show it.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    root: Root = None,
) -> None:
    """How many runs train at once, by device."""
    with _plain_errors():
        folder = _root(root)
        if count is not None:
            queue.set_slots(folder, count, device)
        for kind, number in queue.slots(folder).items():
            print(f"{kind:<6} {number}")


@app.command("fetch")
def fetch_data(
    dataset: Annotated[str, typer.Argument(help="fashion_mnist or cifar10.")],
    to: Annotated[Path | None, typer.Option(help="Folder; by default the cache.")] = None,
) -> None:
    """Download a data set."""
    with _plain_errors():
        print(fetch.fetch_with_bar(dataset, to))


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the presets."""
    with _plain_errors():
        available = named.presets()
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
    what: Annotated[str, typer.Option(help="Tables, or model.")] = ",".join(exporting.TABLE_NAMES),
    format: Annotated[
        str, typer.Option(help="csv, parquet, html, png, svg, pdf, report; several with commas.")
    ] = "csv",
    layer: Annotated[str | None, typer.Option(help="Default: the last hidden layer.")] = None,
    unit: Annotated[int | None, typer.Option(help="Default: the typical unit.")] = None,
    look: Annotated[
        str, typer.Option(help="Of figures: screen, or column or page (of a paper).")
    ] = "screen",
    root: Root = None,
) -> None:
    """Write figure data, figures and networks (ONNX) to files; print their names."""
    with _plain_errors():
        tables = _choices("--what", what, exporting.WHAT)
        formats = _choices("--format", format, exporting.FORMATS)
        look = (_choices("--look", look, tuple(style.LOOKS)) or ["screen"])[0]
        runs = [_find(root, run_id) for run_id in run_ids]
        for path in exporting.export(runs, to, tables, formats, layer, unit, look):
            print(path)


def _choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [item.strip() for item in text.split(",") if item.strip()]
    if unknown := [item for item in chosen if item not in known]:
        raise ConfigError([f"{option}: unknown {', '.join(unknown)}; choose of {', '.join(known)}"])
    return chosen


@app.command()
def dashboard(root: Root = None) -> None:
    """Open the dashboard, as `streamlit run app.py` does."""
    with _plain_errors():
        folder = _root(root)
    home = Path(__file__).resolve().parent.parent
    os.environ["BNVIZ_ROOT"] = str(folder.absolute())
    os.chdir(home)  # where .streamlit/config.toml is
    # In this process, which has imported what the pages use: the first visit need not wait for it.
    sys.argv = ["streamlit", "run", str(home / "app.py")]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    app(prog_name="python -m bnviz")
