"""A comparison of runs as one HTML file: to hand in, to send, to keep."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bnviz import captions, comparisons, distributions, plots, tables, webpage
from bnviz.about import read_about
from bnviz.bundle import experiment
from bnviz.plots import CurveOptions
from bnviz.processes import true_status
from bnviz.store import Run
from bnviz.webpage import Part

DEFAULT_OPTIONS = CurveOptions()


def report(
    runs: Sequence[Run],
    layer: str,
    unit: int | None,
    options: CurveOptions = DEFAULT_OPTIONS,
    target: float = 0.95,
    baseline: str = "",
) -> bytes:
    """The page: what the runs are, their curves, steps to an accuracy, one unit in each of them,
    and how to train each again.

    Args:
        layer, unit: of the percentiles; for no layer, "", these are left out, and for the unit
            None the typical one is taken.
        target, baseline: an accuracy and a run id, as for `comparisons.steps_table`; by default the
            first run.
    """
    data = plots.compared(runs)
    steps = comparisons.steps_table(data, target, baseline or runs[0].run_id).drop(columns="run_id")
    steps.columns = ["run", f"steps to {target:g}", "times fewer", "best accuracy", "at step"]
    differences = comparisons.differences(data).reset_index()
    parts = [
        Part(
            "Runs",
            f"All have {captions.shared_settings(runs)}. {captions.rate_changes(runs)}",
            _overview(runs),
        ),
        Part(options.measure.capitalize(), content=plots.curves(runs, options).drawn.figure),
        Part("Steps to an accuracy", "As in the paper's Figure 3.", steps),
    ]
    if len(differences):
        parts.append(Part("What sets them apart", content=differences))
    if layer:
        shown = runs[: distributions.MAX_MULTIPLES]
        figure = plots.side_by_side(shown, layer, unit).drawn.figure
        parts.append(Part("The same unit in each run", captions.probe(shown), figure))
    parts.append(
        Part(
            "To train them again",
            "Save what a run unfolds as NAME.toml, then: python -m bnviz run NAME.toml. The same "
            "versions on the same device give the same numbers; learning rates changed while "
            "training must be changed again.",
        )
    )
    parts += [Part(code_title=run.run_id, code=experiment(run)) for run in runs]
    names = [read_about(run).name for run in runs]
    title = "Comparison of " + (", ".join(names) if all(names) else f"{len(runs)} runs")
    return webpage.render(title, parts, tables.origin(runs))


def _overview(runs: Sequence[Run]) -> pd.DataFrame:
    rows = []
    for run, label in zip(runs, captions.labels(runs), strict=True):
        status, about = true_status(run), read_about(run)
        summary = status.summary
        took = (status.finished_at or 0) - (status.started_at or 0)
        rows.append(
            {
                "run": label,
                "name": about.name or run.run_id[16:],
                "state": status.state.lower(),
                "step": f"{status.step:,} of {status.steps:,}",
                "test accuracy": _number(status.test_accuracy),
                "test loss": _number(summary.get("test_loss")),
                "seconds": f"{took:.0f}" if status.finished_at and status.started_at else "–",
                "device": status.device or "–",
                "tags": ", ".join(about.tags) or "–",
                "note": about.note or "–",
                "id": run.run_id,
            }
        )
    return pd.DataFrame(rows)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"
