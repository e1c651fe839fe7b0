"""The figures of stored runs: what the pages show, the command line exports and reports hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from bnviz import captions, comparisons, distributions, figures, tables
from bnviz.comparisons import Compared, Curve
from bnviz.distributions import Panel
from bnviz.downsample import View
from bnviz.figures import SHOWN_PERCENTAGES
from bnviz.store import Run, StoreError
from bnviz.style import Drawn

Views = Mapping[str, View]
"""What is looked at: the part of each x axis, by plotly's names "x", "x2" and so on."""

ALL: Views = MappingProxyType({})


class Plot(NamedTuple):
    """A figure, and the same in words for those who cannot see it."""

    drawn: Drawn
    alt: str


@dataclass(frozen=True)
class CurveOptions:
    """How runs are compared; see `comparisons.figure`."""

    measure: str = "test accuracy"
    x_axis: str = "step"
    log_x: bool = False
    log_y: bool = False
    smoothing: float = 0.0
    seeds_as_one: bool = True
    target: float | None = None


def figure1(
    runs: Sequence[Run],
    layer: str,
    unit: int | None,
    *,
    with_paper: bool = False,
    views: Views = ALL,
) -> Plot:
    """The paper's Figure 1 of these runs. For the unit None, the typical one."""
    shown = tables.unit_of(runs, layer, unit)
    ordered = sorted(runs, key=lambda run: run.config.model.normalization != "none")
    data = tables.run_data(ordered, layer, shown, figures.MAX_PANELS)
    drawn = figures.figure1(data, layer, _unit_title(shown), with_paper=with_paper, views=views)
    return Plot(drawn, figures.describe(data, layer, shown or 0))


def curves(runs: Sequence[Run], options: CurveOptions, views: Views = ALL) -> Plot:
    """The runs over one another."""
    data = compared(runs)
    groups = comparisons.over_seeds(data) if options.seeds_as_one else [[run] for run in data]
    lines: list[Curve] = [
        comparisons.mean_curve(group, options.measure, options.x_axis) for group in groups
    ]
    drawn = comparisons.figure(
        lines,
        options.measure,
        options.x_axis,
        smoothing=options.smoothing,
        log_x=options.log_x,
        log_y=options.log_y,
        target=options.target if options.measure == "test accuracy" else None,
        view=views.get("x"),
    )
    return Plot(drawn, comparisons.describe(lines, options.measure))


def side_by_side(runs: Sequence[Run], layer: str, unit: int | None, views: Views = ALL) -> Plot:
    """Percentiles of the same unit in each run, on common axes. For the unit None, the typical one.

    Raises:
        ValueError: more than `distributions.MAX_MULTIPLES` runs.
    """
    shown = tables.unit_of(runs, layer, unit)
    panels = [
        Panel(
            label, tables.unit_rows(run, layer, shown), run.config.model.normalization, run.run_id
        )
        for run, label in zip(runs, captions.labels(runs), strict=True)
    ]
    label = f"{layer} {_unit_title(shown)}"
    length = max(run.config.training.steps for run in runs)
    drawn = distributions.small_multiples(
        panels, label, SHOWN_PERCENTAGES, length, columns=(4, 1), view=views.get("x")
    )
    words = (
        distributions.describe_bands(panel.table, panel.title, SHOWN_PERCENTAGES)
        for panel in panels
    )
    return Plot(drawn, f"{label}. {' '.join(words)}")


def compared(runs: Sequence[Run]) -> list[Compared]:
    """What the comparison needs of each run. A learning rate changed while training counts as a
    setting."""
    changes = [captions.rate_changes([run]).rpartition(": ")[2] for run in runs]
    changed = [{"learning rate": text or "not changed"} if any(changes) else {} for text in changes]
    return [
        Compared(
            run.run_id,
            label,
            run.metrics(),
            run.config.flat() | more,
            _train_examples(run) / run.config.training.batch_size,
        )
        for run, label, more in zip(runs, captions.labels(runs), changed, strict=True)
    ]


def _train_examples(run: Run) -> float:
    """How many the run found; before it has looked, what its configuration says; else NaN."""
    try:
        found = run.status.summary.get("train_examples")
    except StoreError:
        found = None
    if type(found) is int and 0 < found < 10**15:
        return found
    return run.config.train_examples or math.nan


def _unit_title(unit: int | None) -> str:
    return "unit …" if unit is None else f"unit {unit}"
