"""What a sweep shows: accuracy against a setting, with and without batch normalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bnviz import style
from bnviz.captions import setting
from bnviz.settings import NORMALIZATIONS


@dataclass(frozen=True)
class Result:
    """How one run of a sweep stands.

    `settings` are its configuration's values by dotted path; `accuracy` is the latest on the test
    set, None before the first.
    """

    run_id: str
    settings: dict[str, Any]
    accuracy: float | None
    diverged: bool
    ended: bool


def swept(results: Sequence[Result]) -> dict[str, list[Any]]:
    """The settings that differ within a sweep, with their values in order."""
    paths = results[0].settings if results else {}
    values: dict[str, list[Any]] = {}
    for path in paths:
        found = {repr(r.settings[path]): r.settings[path] for r in results}
        if len(found) > 1:
            values[path] = sorted(found.values(), key=lambda v: (str(type(v)), v))
    return values


def table(results: Sequence[Result]) -> pd.DataFrame:
    """One row a combination of settings other than the seed: mean, least and greatest accuracy of
    the runs that did not diverge, and how many runs there are, have ended, and diverged."""
    paths = [path for path in swept(results) if path != "training.seed"]
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        own = {path: result.settings[path] for path in paths}
        row = rows.setdefault(repr(own), {**own, "accuracies": [], "runs": 0, "ended": 0, "bad": 0})
        row["runs"] += 1
        row["ended"] += result.ended
        row["bad"] += result.diverged
        if result.accuracy is not None and not result.diverged:
            row["accuracies"].append(result.accuracy)
    for row in rows.values():
        accuracies = np.array(row.pop("accuracies"), float)
        known = len(accuracies) > 0
        row["accuracy"] = accuracies.mean() if known else np.nan
        row["least"], row["greatest"] = (
            (accuracies.min(), accuracies.max()) if known else (np.nan, np.nan)
        )
        row["diverged"] = row.pop("bad")
    columns = [*paths, "accuracy", "least", "greatest", "runs", "ended", "diverged"]
    return pd.DataFrame(list(rows.values()), columns=columns)


def figure(results: Sequence[Result], against: str) -> go.Figure:
    """Test accuracy against one of the settings swept, a line for each combination of the others.

    A point is the mean over seeds, its bar goes from the least to the greatest run. Where all runs
    of a point diverged there is a cross at the bottom.

    Args:
        against: a dotted path of `swept`.
    """
    data = table(results)
    numeric = all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in swept(results).get(against, [])
    )
    others = [p for p in swept(results) if p not in (against, "training.seed")]
    same = data[others].map(repr).agg(" ".join, axis=1) if others else pd.Series("", data.index)
    groups = [rows for _, rows in data.groupby(same, sort=False)]
    kinds = [_kind(rows, results) for rows in groups]
    fig = go.Figure()
    for rows, line in zip(groups, style.lines(kinds), strict=True):
        rows = rows.sort_values(against) if numeric else rows
        x = rows[against] if numeric else rows[against].map(str)
        label = ", ".join(_words(path, rows[path].iloc[0]) for path in others) or "all"
        fig.add_scatter(
            x=x,
            y=rows["accuracy"],
            name=label,
            uid=style.uid(label),
            mode="lines+markers" if numeric else "markers",
            line=line,
            marker_size=7,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": rows["greatest"] - rows["accuracy"],
                "arrayminus": rows["accuracy"] - rows["least"],
            },
            hovertemplate="%{y:.4f} at %{x}",
        )
        bad = rows[(rows["diverged"] > 0) & rows["accuracy"].isna()]
        if len(bad):
            fig.add_scatter(
                x=bad[against] if numeric else bad[against].map(str),
                y=np.zeros(len(bad)),
                name=f"{label}: diverged",
                uid=style.uid(f"{label} diverged"),
                mode="markers",
                marker={"symbol": "x", "size": 9, "color": line["color"]},
                hovertemplate="diverged at %{x}",
            )
    values = swept(results).get(against, [])
    wide = numeric and min(values, default=0) > 0 and max(values) / min(values) >= 10
    name = against.rpartition(".")[2].replace("_", " ")
    fig.update_xaxes(type="log" if wide else None, **style.axis(name))
    fig.update_yaxes(range=[0, 1], **style.axis("test accuracy"))
    fig.update_layout(**style.layout(444))
    fig.update_layout(hovermode="closest")
    return fig


def describe(results: Sequence[Result]) -> str:
    """The sweep in words, for those who cannot see the figure."""
    data = table(results)
    known = data.dropna(subset=["accuracy"])
    if known.empty:
        return "No accuracy is known yet."
    best = known.nlargest(1, "accuracy").to_dict("records")[0]
    paths = [path for path in swept(results) if path != "training.seed"]
    where = ", ".join(_words(path, best[path]) for path in paths)
    return (
        f"Best: test accuracy {best['accuracy']:.4f} ({where}). "
        f"{int(data['ended'].sum())} of {int(data['runs'].sum())} runs have ended, "
        f"{int(data['diverged'].sum())} diverged."
    )


def _kind(rows: pd.DataFrame, results: Sequence[Result]) -> str:
    path = "model.normalization"
    return str(rows[path].iloc[0] if path in rows else results[0].settings[path])


def _words(path: str, value: Any) -> str:
    if path == "model.normalization":
        name = NORMALIZATIONS[value]
        return name[0].lower() + name[1:]
    return setting(path, value)
