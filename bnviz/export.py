"""Files of some runs: tables, Figure 1, a report, their networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnviz import figure_files, plots, tables
from bnviz.files import write_aside
from bnviz.report import report
from bnviz.store import Run, StoreError

TABLE_NAMES = ("percentiles", "accuracy")
MODEL = "model"
WHAT = (*TABLE_NAMES, MODEL)
REPORT = "report"
FORMATS = (*tables.WRITERS, *figure_files.FORMATS, REPORT)


def export(
    runs: Sequence[Run],
    directory: Path,
    what: Sequence[str],
    formats: Sequence[str],
    layer: str | None = None,
    unit: int | None = None,
    look: str = "screen",
) -> list[Path]:
    """Write tables and the figure of some runs; returns the files written.

    Args:
        what: of WHAT; which tables the data formats write, and whether each run's network is
            written, which is an ONNX file whatever the formats.
        formats: of FORMATS.
        layer: by default the last hidden layer.
        unit: by default the typical one.
        look: of the figures, one of `style.LOOKS`.

    Raises:
        StoreError: no such layer or unit, nothing recorded yet, a network that cannot be
            exported, or the folder cannot be written.
    """
    layer = layer or list(runs[0].layers)[-1]
    needs_unit = "percentiles" in what or set(formats) & set(figure_files.FORMATS)
    if needs_unit or REPORT in formats or set(what) - {MODEL}:
        for run in runs:
            run.check_unit(layer, unit)
        unit = tables.unit_of(runs, layer, unit)
    if unit is None and needs_unit:
        raise StoreError(f"no percentiles of {layer} are recorded yet, so there is no such figure")
    make = {
        "percentiles": lambda: tables.percentiles_table(runs, layer, unit or 0),
        "accuracy": lambda: tables.accuracy_table(runs),
    }
    names = {"percentiles": f"percentiles-{layer}-unit{unit}", "accuracy": "accuracy"}
    contents = {f"model-{run.run_id}.onnx": network(run) for run in runs if MODEL in what}
    for format in formats:
        if write := tables.WRITERS.get(format):
            for name in (n for n in what if n in names):
                contents[f"{names[name]}.{format}"] = write(make[name](), tables.origin(runs))
        elif format == REPORT:
            contents["report.html"] = report(runs, layer, unit)
        else:
            drawn = plots.figure1(runs, layer, unit).drawn
            name = f"figure1-{layer}-unit{unit}"
            content = figure_files.to_file(drawn, name, format, look, tables.origin(runs))
            contents[f"{name}.{format}"] = content
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_aside(directory / name, content)
    except OSError as error:
        raise StoreError(
            f"cannot write to {directory}: {error.strerror}; choose another folder with --to"
        ) from error
    return [directory / name for name in contents]


def network(run: Run) -> bytes:
    """The network of a run's last checkpoint as an ONNX file (`bnviz.onnx_file`).

    Raises:
        StoreError: there is no checkpoint, or the network cannot be exported.
    """
    from bnviz import checkpoint, onnx_file  # torch and onnx take seconds to load
    from bnviz.data import DataError

    measured = run.inference()
    final = measured.population_statistics.in_batches if measured else None
    try:
        state = checkpoint.load(run.paths.checkpoint)
        if state is None:
            raise StoreError(
                f"{run.run_id} has no checkpoint yet, so there is no network to export; wait until "
                "it has trained for some seconds"
            )
        return onnx_file.to_onnx(run.config, state, tables.origin([run]), final)
    except (checkpoint.CheckpointError, onnx_file.ExportError, DataError) as error:
        raise StoreError(f"cannot export the network of {run.run_id}: {error}") from error


def bundle_figures(runs: Sequence[Run]) -> dict[str, bytes]:
    """Figure 1 and the report of some runs, to go along when they are packed: HTML files by name;
    none where the runs have no layer in common."""
    layers = [layer for layer in runs[0].layers if all(layer in run.layers for run in runs)]
    if not layers:
        return {}
    drawn = plots.figure1(runs, layers[-1], None).drawn
    figure = figure_files.to_file(drawn, "figure1", "html", "screen", tables.origin(runs))
    return {"figure1.html": figure, "comparison.html": report(runs, layers[-1], None)}
