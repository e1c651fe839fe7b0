"""Several runs against one another: curves, means over seeds, steps to an accuracy (Figure 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bnviz import style
from bnviz.downsample import View
from bnviz.style import Drawn

MEASURES = {
    "test accuracy": ("test", "accuracy"),
    "test loss": ("test", "loss"),
    "train loss": ("train", "loss"),
}
"""What is drawn over time: split and column of the metrics table."""

X_AXES = {"step": "step", "epoch": "epoch", "wall time": "seconds of training"}
"""What it is drawn against, with the axis title."""


@dataclass(frozen=True)
class Curve:
    """A measure of one run, or of several that differ in their seed alone.

    `x` and `y` have one value a record, shape (n,); `low` and `high` span the runs of the group.
    """

    label: str
    normalization: str
    uid: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64] | None = None
    high: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Compared:
    """What comparing needs of a run: its name, all rows of `metrics`, and its configuration's
    values by dotted path."""

    run_id: str
    label: str
    metrics: pd.DataFrame
    settings: dict[str, Any]
    steps_per_epoch: float

    @cached_property
    def columns(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """The columns of `metrics` with numbers, (rows of the split,) each, by split."""
        numbers = {name: c.to_numpy() for name, c in self.metrics.items() if name != "split"}
        splits = self.metrics["split"].to_numpy()
        return {
            split: {str(name): values[splits == split] for name, values in numbers.items()}
            for split, _ in MEASURES.values()
        }


def curve(run: Compared, measure: str, x_axis: str) -> Curve:
    """One run's measure (see MEASURES) against step, epoch or wall time."""
    rows = _rows(run, measure)
    x = {
        "step": rows["step"],
        "epoch": rows["step"] / run.steps_per_epoch,
        "wall time": rows["wall_time_s"],
    }[x_axis]
    return Curve(
        run.label,
        str(run.settings["model.normalization"]),
        run.run_id,
        x.astype(np.float64),
        rows[MEASURES[measure][1]].astype(np.float64),
    )


def over_seeds(runs: Sequence[Compared]) -> list[list[Compared]]:
    """Groups of runs that differ in nothing but `training.seed`, in the order of the first."""
    groups: dict[str, list[Compared]] = {}
    for run in runs:
        others = {p: value for p, value in run.settings.items() if p != "training.seed"}
        groups.setdefault(repr(sorted(others.items())), []).append(run)
    return list(groups.values())


def mean_curve(group: Sequence[Compared], measure: str, x_axis: str) -> Curve:
    """Mean, minimum and maximum of a group at the steps that all of its runs have recorded; a run
    that has recorded nothing is left out."""
    group = [run for run in group if len(_rows(run, measure)["step"])] or group[:1]
    curves = [curve(run, measure, x_axis) for run in group]
    if len(curves) == 1:
        return curves[0]
    steps = [_rows(run, measure)["step"] for run in group]
    common = reduce(np.intersect1d, steps)
    rows = [np.searchsorted(own, common) for own in steps]
    values = np.stack([c.y[kept] for c, kept in zip(curves, rows, strict=True)])  # (runs, steps)
    x = np.stack([c.x[kept] for c, kept in zip(curves, rows, strict=True)])
    seeds = {run.settings["training.seed"] for run in group}
    of = "seeds" if len(seeds) == len(group) else "runs"
    return Curve(
        f"{_common_label(group)}, mean of {len(group)} {of}",
        curves[0].normalization,
        "-".join(run.run_id for run in group),
        x.mean(axis=0),
        values.mean(axis=0),
        values.min(axis=0),
        values.max(axis=0),
    )


def smooth(y: npt.NDArray[np.float64], weight: float) -> npt.NDArray[np.float64]:
    """Exponential moving average, without the pull towards 0 at the start (as Adam's bias
    correction, Kingma & Ba 2015). NaN stays where it is.

    Args:
        y: values, shape (n,).
        weight: of the past, from 0 (no smoothing) to below 1.
    """
    result = pd.Series(y).ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean().to_numpy()
    return np.where(np.isnan(y), np.nan, result)


def steps_to(run: Compared, accuracy: float) -> int | None:
    """Step of the first evaluation at which the test accuracy is at least this; None if never."""
    rows = _rows(run, "test accuracy")
    reached = rows["step"][rows["accuracy"] >= accuracy]
    return int(reached[0]) if len(reached) else None


def steps_table(runs: Sequence[Compared], accuracy: float, baseline: str) -> pd.DataFrame:
    """The paper's Figure 3: for each run the steps to an accuracy, how many times fewer these are
    than the baseline's, and the best accuracy.

    Args:
        baseline: the run id to compare with.
    """
    steps = {run.run_id: steps_to(run, accuracy) for run in runs}
    reference = steps.get(baseline)
    rows = []
    for run in runs:
        own = steps[run.run_id]
        tests = _rows(run, "test accuracy")
        measured = not np.isnan(tests["accuracy"]).all()
        best = int(np.nanargmax(tests["accuracy"])) if measured else None
        rows.append(
            {
                "run_id": run.run_id,
                "run": run.label,
                "steps": own,
                "speed_up": reference / own if reference and own else None,
                "best_accuracy": None if best is None else tests["accuracy"][best],
                "best_at_step": None if best is None else tests["step"][best],
            }
        )
    types = {"steps": "Int64", "speed_up": "float64", "best_accuracy": "float64"}
    return pd.DataFrame(rows).astype({**types, "best_at_step": "Int64"})


def differences(runs: Sequence[Compared]) -> pd.DataFrame:
    """The settings in which these runs differ: one row a setting, one column a run (by label)."""
    paths = runs[0].settings if runs else {}
    differing = [p for p in paths if len({repr(run.settings[p]) for run in runs}) > 1]
    columns = {run.label: [_text(run.settings[p]) for p in differing] for run in runs}
    return pd.DataFrame(columns, index=pd.Index(differing, name="setting"), dtype="string")


def figure(
    curves: Sequence[Curve],
    measure: str,
    x_axis: str,
    *,
    smoothing: float = 0.0,
    log_x: bool = False,
    log_y: bool = False,
    target: float | None = None,
    view: View | None = None,
) -> Drawn:
    """Curves over one another. Smoothed ones have the raw curve faint behind; a group's band goes
    from its least to its greatest run.

    Args:
        target: an accuracy to mark with a horizontal line.
        view: the part of the x axis that is looked at.
    """
    traces: list[dict[str, Any]] = []
    drawn: list[style.Points] = []
    for c, line in zip(curves, style.lines([c.normalization for c in curves]), strict=True):
        usable = c.x > 0 if log_x else np.ones(len(c.x), bool)
        x, y = pd.Series(c.x[usable]), pd.Series(c.y[usable])
        if c.low is not None and c.high is not None:
            low, high = c.low[usable], c.high[usable]
            kept, _ = style.thin(x, [low, high], view=view)
            traces.append(
                {
                    "type": "scatter",
                    "x": x.to_numpy()[np.concatenate([kept, kept[::-1]])],
                    "y": np.concatenate([high[kept], low[kept[::-1]]]).astype(np.float32),
                    "fill": "toself",
                    "fillcolor": style.faint(line["color"]),
                    "line": {"width": 0},
                    "mode": "lines",
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": c.uid,
                    "uid": f"{c.uid}-band",
                }
            )
        if smoothing:
            faint = {"line": {**line, "width": 1}, "opacity": 0.3, "hoverinfo": "skip"}
            identity = {"legendgroup": c.uid, "uid": f"{c.uid}-raw"}
            raw, _ = style.line(x, y, view, showlegend=False, **identity, **faint)
            traces.append(raw)
            y = pd.Series(smooth(c.y, smoothing)[usable])
        trace, points = style.line(
            x,
            y,
            view,
            name=c.label,
            line=line,
            legendgroup=c.uid,
            uid=c.uid,
            hovertemplate=f"%{{y:.4f}} at %{{x:{',' if x_axis == 'step' else ',.4~r'}}}",
        )
        traces.append(trace)
        drawn.append(points)
    total = style.Points(
        sum(points.drawn for points in drawn),
        sum(points.available for points in drawn),
        view,
        any(points.thinned for points in drawn),
    )
    words = measure + (f", smoothed ({smoothing:g})" if smoothing else "")
    scene = f"{measure} {x_axis} {log_x} {log_y}"  # a zoom lasts as long as the axes mean the same
    mark = {"color": style.PAPER_COLOUR, "width": 1, "dash": "dot"}
    ends = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": target, "y1": target}
    layout = {
        **style.layout(480),
        "meta": style.meta(drawn),
        "shapes": [] if target is None else [{**ends, "line": mark}],
        "xaxis": {
            "type": "log" if log_x else "linear",
            "tickformat": "~s",
            "uirevision": scene,
            **style.axis(total.title(X_AXES[x_axis])),
        },
        "yaxis": {
            "type": "log" if log_y else "linear",
            "uirevision": scene,
            **style.axis(words),
        },
    }
    return Drawn((traces, layout))


def describe(curves: Sequence[Curve], measure: str) -> str:
    """The figure in words, for those who cannot see it."""
    parts = [
        f"{c.label}: {measure} {c.y[-1]:.4f} at the end."
        if len(c.y)
        else f"{c.label}: no points yet."
        for c in curves
    ]
    return " ".join(parts)


def _rows(run: Compared, measure: str) -> dict[str, npt.NDArray[Any]]:
    return run.columns[MEASURES[measure][0]]


def _common_label(group: Sequence[Compared]) -> str:
    """A group's name: the label of its first run without the seed and the end of the run id, by
    which labels tell runs apart."""
    parts = re.sub(r" \([0-9a-f]{6}\)$", "", group[0].label).split(", ")
    return ", ".join(part for part in parts if not part.startswith("seed "))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " – ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
