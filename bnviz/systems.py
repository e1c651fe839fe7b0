"""The paper's systems against one another: Figure 2's curves, Figure 3's table, and which of the
paper's relations hold (Section 4.2.2). No files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bnviz import paper, style
from bnviz.comparisons import Curve
from bnviz.style import Drawn

SYSTEMS = {
    "inception": "Inception",
    "bn-baseline": "BN-Baseline",
    "bn-x5": "BN-x5",
    "bn-x30": "BN-x30",
    "bn-x5-sigmoid": "BN-x5-Sigmoid",
    "inception-x5": "Inception at 5 × the rate",
    "inception-sigmoid": "Inception-Sigmoid",
}
"""The runs of the preset figure2, and what the paper calls these systems (`paper.FIGURE_3`)."""

LINES = {
    "Inception": ("#222222", "dash"),
    "BN-Baseline": ("#0072B2", "dot"),
    "BN-x5": ("#009E73", "solid"),
    "BN-x30": ("#A8457F", "longdash"),
    "BN-x5-Sigmoid": ("#B8860B", "dashdot"),
    "Inception at 5 × the rate": ("#8A8A8A", "dot"),
    "Inception-Sigmoid": ("#8A8A8A", "longdashdot"),
}
"""Colour and dash of each, the same for the paper's curves and for ours."""

LEARNS = 1.5
"""A network that is right less often than so many times chance has learned nothing."""


@dataclass(frozen=True)
class Result:
    """How one run of a system stands. `ended`: nothing more will come of it."""

    steps: npt.NDArray[np.int64]  # of the evaluations, (n,)
    accuracy: npt.NDArray[np.float64]  # (n,)
    ended: bool
    diverged_at: int | None = None

    @property
    def best(self) -> float | None:
        known = self.accuracy[np.isfinite(self.accuracy)]
        return float(known.max()) if len(known) else None

    def steps_to(self, accuracy: float) -> int | None:
        """Of the first evaluation with this accuracy."""
        there = np.flatnonzero(self.accuracy >= accuracy)
        return int(self.steps[there[0]]) if len(there) else None


Results = Mapping[str, Mapping[int, Result]]
"""By the paper's name of the system, then by seed."""


class Outcome(NamedTuple):
    """What came of a system in the seeds in which its baseline, too, has ended."""

    steps: list[int]
    """To the best accuracy of the baseline of the same seed, where that was reached."""
    speed_ups: list[float]
    """The baseline's steps over these."""
    best: list[float]
    """Best accuracy of each seed."""
    seeds: int
    diverged: list[int]
    """At which step, of those that did."""


def outcome(results: Results, system: str) -> Outcome:
    """What came of a system so far."""
    found = Outcome([], [], [], 0, [])
    seeds = 0
    for seed, own in results.get(system, {}).items():
        baseline = results.get(paper.BASELINE, {}).get(seed)
        if not (own.ended and baseline and baseline.ended) or baseline.best is None:
            continue
        seeds += 1
        if own.diverged_at is not None:
            found.diverged.append(own.diverged_at)
        if own.best is not None:
            found.best.append(own.best)
        reached, reference = own.steps_to(baseline.best), baseline.steps_to(baseline.best)
        if reached and reference:
            found.steps.append(reached)
            found.speed_ups.append(reference / reached)
    return found._replace(seeds=seeds)


def table(results: Results) -> pd.DataFrame:
    """Figure 3, the paper's numbers beside ours: for each system the steps to the baseline's best
    accuracy, how many times fewer these are, and the best accuracy; of ours the mean over seeds,
    the least and the greatest."""
    rows = []
    for system, theirs in paper.FIGURE_3.items():
        ours = outcome(results, system)
        reference = paper.FIGURE_3[paper.BASELINE].steps_to_72_2
        assert reference
        rows.append(
            {
                "system": system,
                "paper_steps": theirs.steps_to_72_2,
                "paper_speed_up": reference / theirs.steps_to_72_2
                if theirs.steps_to_72_2
                else None,
                "paper_best": theirs.best_accuracy,
                **_spread("steps", ours.steps),
                "speed_up": _mean(ours.speed_ups),
                **_spread("best", ours.best),
                "seeds": ours.seeds,
                "what": _in_words(ours, theirs.outcome),
            }
        )
    numbers = [name for name in rows[0] if name not in ("system", "seeds", "what")]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, "float64"))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: _mean(values),
        f"{name}_least": min(values, default=None),
        f"{name}_most": max(values, default=None),
    }


def _in_words(ours: Outcome, theirs: str) -> str:
    said = [f"paper: {theirs}"] if theirs else []
    if ours.diverged:
        where = ", ".join(f"{step:,}" for step in sorted(ours.diverged))
        said.append(f"ours: diverged at step {where}")
    if missed := ours.seeds - len(ours.steps):
        of = "" if missed == ours.seeds else f" in {missed} of {ours.seeds} seeds"
        said.append(f"ours: never reaches Inception's best{of}")
    return "; ".join(said)


# The paper's relations --------------------------------------------------------------------------


class Claim(NamedTuple):
    """A relation that the paper found, and whether it holds of ours; None: not known yet."""

    text: str
    paper: str
    ours: str
    holds: bool | None


def claims(results: Results, chance: float) -> list[Claim]:
    """The paper's relations between its systems, as far as ours have ended.

    Args:
        chance: accuracy of a network that has learned nothing.
    """
    found = {system: outcome(results, system) for system in paper.FIGURE_3}
    best = {system: _mean(own.best) for system, own in found.items() if own.seeds}
    speed = {system: _mean(own.speed_ups) for system, own in found.items() if own.seeds}
    baseline = paper.BASELINE

    def faster(system: str, than: str, theirs: str) -> Claim:
        text = f"{system} reaches Inception's best accuracy in fewer steps than {than}"
        if system not in speed or than not in speed:
            return Claim(text, theirs, "", None)
        mine, other = speed[system], speed[than]
        return Claim(text, theirs, f"{_times(mine)} against {_times(other)}", _above(mine, other))

    def higher(system: str, than: Iterable[str], text: str, theirs: str) -> Claim:
        others = [other for other in than if other != system]
        if system not in best or any(other not in best for other in others):
            return Claim(text, theirs, "", None)
        most = max(others, key=lambda other: best[other] or 0)
        said = f"{_share(best[system])} against {_share(best[most])} ({most})"
        return Claim(text, theirs, said, _above(best[system], best[most]))

    def lower(system: str) -> Claim:
        claim = higher(
            baseline,
            [system],
            f"{system} learns, but stays below Inception's best",
            "69.8% against 72.2%",
        )
        if claim.holds is None:
            return claim
        learns = (best[system] or 0) > LEARNS * chance
        said = f"{_share(best[system])} against {_share(best[baseline])}"
        return claim._replace(ours=said, holds=learns and bool(claim.holds))

    learning = ("Inception", "BN-Baseline", "BN-x5", "BN-x30", "BN-x5-Sigmoid")
    fast = "Inception at 5 × the rate"
    sigmoid = "Inception-Sigmoid"
    return [
        faster("BN-Baseline", baseline, "2.3 times fewer than Inception"),
        faster("BN-x5", "BN-Baseline", "14.8 against 2.3 times fewer than Inception"),
        faster("BN-x5", "BN-x30", "14.8 against 11.5 times fewer than Inception"),
        higher(
            "BN-x5", [baseline], "BN-x5 ends above Inception's best accuracy", "73.0% against 72.2%"
        ),
        higher(
            "BN-x30", learning, "BN-x30 has the highest accuracy", "74.8% against 73.0% (BN-x5)"
        ),
        lower("BN-x5-Sigmoid"),
        Claim(
            "Without BN, training at 5 times the learning rate fails",
            "the parameters reach machine infinity",
            _failing(found[fast], chance),
            _fails(found[fast], chance) if found[fast].seeds else None,
        ),
        Claim(
            "Without BN, the network with sigmoids is never better than chance",
            "at most 1/1000",
            f"{_share(best[sigmoid])}, where chance is {chance:.0%}" if sigmoid in best else "",
            (best[sigmoid] or 0) <= LEARNS * chance if sigmoid in best else None,
        ),
    ]


def _above(mine: float | None, other: float | None) -> bool:
    """Never reached counts as 0."""
    return (mine or 0) > (other or 0)


def _times(speed_up: float | None) -> str:
    return f"{speed_up:.1f} times" if speed_up else "never"


def _share(accuracy: float | None) -> str:
    return "nothing measured" if accuracy is None else f"{accuracy:.2%}"


def _fails(own: Outcome, chance: float) -> bool:
    """Whether each seed diverges or learns nothing."""
    return len(own.diverged) == own.seeds or max(own.best, default=0) <= LEARNS * chance


def _failing(own: Outcome, chance: float) -> str:
    if not own.seeds:
        return ""
    said = []
    if own.diverged:
        steps = ", ".join(f"{step:,}" for step in sorted(own.diverged))
        of = f" in {len(own.diverged)} of {own.seeds} seeds" if own.seeds > 1 else ""
        said.append(f"not finite at step {steps}{of}")
    if len(own.diverged) < own.seeds:
        said.append(f"finite; at most {_share(max(own.best))} right, where chance is {chance:.0%}")
    return "; ".join(said)


# Figure 2 ---------------------------------------------------------------------------------------


def theirs() -> Drawn:
    """The paper's Figure 2, digitised: ImageNet."""
    lines = []
    for system in paper.FIGURE_3:
        points = paper.imagenet_accuracy(system)
        if len(points):
            x, y = (points[name].to_numpy(dtype=np.float64) for name in ("step", "accuracy"))
            lines.append(Curve(system, "", system, x, y))
    marks = {
        system: row.steps_to_72_2 for system, row in paper.FIGURE_3.items() if row.steps_to_72_2
    }
    return _figure(
        lines,
        paper.BASELINE_BEST,
        marks,
        "The paper: ImageNet, digitised",
        "validation accuracy, single crop",
        (0.4, 0.8),
        32e6,
    )


def ours(curves: Mapping[str, Curve], results: Results, steps: int) -> Drawn:
    """Figure 2 of our runs.

    Args:
        curves: of each system that has any, the mean over its seeds.
        steps: of the whole runs, the end of the axis.
    """
    lines = [curves[system] for system in paper.FIGURE_3 if system in curves]
    bests = [r.best for r in results.get(paper.BASELINE, {}).values() if r.ended and r.best]
    best = _mean(bests)
    marks = {
        system: mean
        for system in paper.FIGURE_3
        if (mean := _mean(outcome(results, system).steps)) is not None
    }
    top = max((float(np.nanmax(c.y)) for c in lines if len(c.y)), default=1.0)
    # What is compared happens near the best accuracy; the rise before it is a double click away.
    bottom = max(0.0, min(best or top, top) - 0.1)
    return _figure(
        lines,
        best,
        marks,
        "Ours: the small twin",
        "test accuracy",
        (bottom, min(1.0, top + 0.01)),
        steps,
    )


def _figure(
    lines: Sequence[Curve],
    best: float | None,
    marks: Mapping[str, float],
    title: str,
    y_title: str,
    y_range: tuple[float, float],
    steps: float,
) -> Drawn:
    """Curves with a diamond where each reaches the baseline's best accuracy."""
    traces: list[dict[str, Any]] = []
    drawn = []
    for c in lines:
        colour, dash = LINES[c.uid]
        uid = style.uid(c.uid)
        if c.low is not None and c.high is not None:
            traces.append(
                {
                    "type": "scatter",
                    "x": np.concatenate([c.x, c.x[::-1]]),
                    "y": np.concatenate([c.high, c.low[::-1]]).astype(np.float32),
                    "fill": "toself",
                    "fillcolor": style.faint(colour),
                    "line": {"width": 0},
                    "mode": "lines",
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": uid,
                    "uid": f"{uid}-band",
                }
            )
        trace, points = style.line(
            pd.Series(c.x),
            pd.Series(c.y),
            name=c.label,
            line={"color": colour, "dash": dash, "width": 2},
            legendgroup=uid,
            uid=uid,
            hovertemplate="%{y:.4f} at %{x:,.0f}",
        )
        traces.append(trace)
        drawn.append(points)
        if best is not None and c.uid in marks:
            traces.append(
                {
                    "type": "scatter",
                    "x": np.array([marks[c.uid]], np.float64),
                    "y": np.array([best], np.float64),
                    "mode": "markers",
                    "marker": {"symbol": "diamond", "size": 11, "color": colour},
                    "hovertemplate": f"{c.uid} reaches %{{y:.4f}} at step %{{x:,.0f}}"
                    "<extra></extra>",
                    "showlegend": False,
                    "legendgroup": uid,
                    "uid": f"{uid}-mark",
                }
            )
    dotted = {"color": style.PAPER_COLOUR, "width": 1, "dash": "dot"}
    ends = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": best, "y1": best}
    heading = {"x": 0.5, "y": 1, "xref": "paper", "yref": "paper", "yanchor": "bottom"}
    layout = {
        **style.layout(460, bottom=110),
        "meta": style.meta(drawn),
        "annotations": [{"text": title, "showarrow": False, "font": {"size": 14}, **heading}],
        "shapes": [] if best is None else [{**ends, "line": dotted}],
        "xaxis": {"range": [0, steps], "tickformat": "~s", **style.axis("step")},
        "yaxis": {"range": list(y_range), **style.axis(y_title)},
        "hovermode": "closest",
    }
    return Drawn((traces, layout))


def describe(results: Results) -> str:
    """Our figure in words, for those who cannot see it."""
    rows = table(results)
    parts = [
        f"{row['system']}: best accuracy {row['best']:.4f}"
        + (f", Inception's best after {row['steps']:,.0f} steps" if row["steps"] > 0 else "")
        for row in rows.to_dict("records")
        if row["best"] == row["best"]  # not NaN
    ]
    return "; ".join(parts) + "." if parts else "No run has ended yet."
