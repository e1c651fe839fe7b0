"""The paper's identities of a run in words, as a table with verdicts, and as a figure. No files."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from bnviz import style
from bnviz.downsample import View
from bnviz.schema import IDENTITIES

TOLERANCE = 1e-8
"""What counts as rounding: float64 has 16 digits, and a unit that is nearly constant over the batch
loses up to 6 of them, and some more in sums."""


class Words(NamedTuple):
    """An identity: its name, its formula, and what that says."""

    name: str
    formula: str
    meaning: str


WORDS = {
    "output": Words(
        "output",
        "BN((aW)u) = BN(Wu)",
        "Weights times a = 3 give the same output.",
    ),
    "input_gradient": Words(
        "gradient by the input",
        "∂BN((aW)u)/∂u = ∂BN(Wu)/∂u",
        "They hand the same gradient to the layer below.",
    ),
    "weight_gradient": Words(
        "gradient by the weights",
        "∂BN((aW)u)/∂(aW) = 1/a · ∂BN(Wu)/∂W",
        "Their own gradient is a third as large.",
    ),
    "orthogonality": Words(
        "orthogonal gradient",
        "⟨w, ∂ℓ/∂w⟩ = 0",
        "A unit's gradient is orthogonal to its weights.",
    ),
    "mean": Words("mean", "E[x̂] = 0", "Normalized units have mean 0 over the batch."),
    "variance": Words("variance", "Var[x̂] = 1", "Normalized units have variance 1 over the batch."),
}

assert tuple(WORDS) == IDENTITIES


def verdicts(checks: pd.DataFrame) -> pd.DataFrame:
    """One row an identity, the largest errors so far and where they were.

    Columns: identity, formula, meaning, error, where, error_with_epsilon, where_with_epsilon,
    verdict. The verdict is on the error with ε = 0.

    Args:
        checks: rows of the checks table.
    """
    rows = []
    for identity, words in WORDS.items():
        checked = checks[(checks["identity"] == identity) & (checks["units"] > 0)]
        row: dict[str, Any] = dict(zip(("identity", "formula", "meaning"), words, strict=True))
        for column, where in (
            ("error", "where"),
            ("error_with_epsilon", "where_with_epsilon"),
        ):
            # What is not a number is worse than any.
            worst = checked.sort_values(column, na_position="last").tail(1).to_dict("records")
            row[column] = worst[0][column] if worst else float("nan")
            row[where] = f"{worst[0]['layer']}, step {worst[0]['step']:,}" if worst else ""
        row["verdict"] = _verdict(checked["error"])
        rows.append(row)
    return pd.DataFrame(rows)


def _verdict(errors: pd.Series[float]) -> str:
    if errors.empty:
        return "not checked: all units are constant"
    if errors.isna().any():
        return "not finite"
    return "holds" if errors.max() <= TOLERANCE else "violated"


def left_out(checks: pd.DataFrame) -> str:
    """Where most units were left out, as a sentence; "" where none were."""
    if not len(checks) or not checks["left_out"].any():
        return ""
    [row] = checks.nlargest(1, "left_out").to_dict("records")
    total = row["units"] + row["left_out"]
    return (
        "Units that are constant over the batch cannot be normalized and are left out: at most "
        f"{row['left_out']:,} of {total:,}, in {row['layer']} at step {row['step']:,}."
    )


def figure(checks: pd.DataFrame, steps: int, view: View | None = None) -> go.Figure:
    """The largest error of any layer against steps: thick with the run's ε, thin with ε = 0.

    Args:
        checks: rows of the checks table.
        steps: of the whole run, the end of the axis.
        view: the steps that are looked at, where not all.
    """
    traces, drawn = [], []
    lines = style.lines(["batch"] * len(WORDS))
    for (identity, words), line in zip(WORDS.items(), lines, strict=True):
        worst = checks[checks["identity"] == identity].groupby("step").max(numeric_only=True)
        for column, epsilon, width in (
            ("error_with_epsilon", "the run's ε", 2),
            ("error", "ε = 0", 1),
        ):
            # A logarithmic axis has no place for 0, so the line has a gap there.
            values = worst[column].where(worst[column] > 0)
            trace, points = style.line(
                pd.Series(worst.index),
                values,
                view,
                name=words.name,
                line={**line, "width": width},
                legendgroup=identity,
                showlegend=width == 2,
                uid=f"{identity}-{column}",
                hovertemplate=f"%{{y:.1e}} with {epsilon}",
            )
            traces.append(trace)
            drawn.append(points)
    most = max(drawn, key=lambda points: points.available)
    mark = {"color": style.PAPER_COLOUR, "width": 1, "dash": "dot"}
    ends = {"xref": "x domain", "x0": 0, "x1": 1, "y0": TOLERANCE, "y1": TOLERANCE}
    note = {"xref": "x domain", "x": 1, "y": -8, "xanchor": "right", "yanchor": "bottom"}
    return go.Figure(
        traces,
        {
            **style.layout(380, bottom=104),
            "meta": style.meta(drawn),
            "shapes": [{"type": "line", **ends, "line": mark}],
            "annotations": [{"text": "tolerance for ε = 0", "showarrow": False, **note}],
            "xaxis": {
                "range": [0, steps],
                "tickformat": "~s",
                "hoverformat": ",d",
                **style.axis(most.title("step")),
            },
            "yaxis": {
                "type": "log",
                "exponentformat": "power",
                "dtick": 3,
                **style.axis("relative deviation"),
            },
        },
    )


def describe(checks: pd.DataFrame) -> str:
    """The figure in words, for those who cannot see it."""
    if checks.empty:
        return "Relative deviations from the paper's identities: no points yet."
    table = verdicts(checks)
    parts = (
        f"{row.identity} {row.error:.0e} with ε = 0, {row.error_with_epsilon:.0e} with the run's ε"
        for row in table.itertuples()
    )
    return f"Largest relative deviations from the paper's identities: {'; '.join(parts)}."
