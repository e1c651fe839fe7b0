"""The paper's systems against one another: Figure 3's table, and which of its relations hold
(Section 4.2.2). No files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bnviz import paper

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
    def known(self) -> list[float]:
        """The accuracies that are numbers."""
        return [float(accuracy) for accuracy in self.accuracy if np.isfinite(accuracy)]

    @property
    def best(self) -> float | None:
        return max(self.known, default=None)

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
    last: list[float]
    """Accuracy of each seed at its end."""
    seeds: int
    diverged: list[int]
    """At which step, of those that did."""


def outcome(results: Results, system: str) -> Outcome:
    """What came of a system so far."""
    found = Outcome([], [], [], [], 0, [])
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
            found.last.append(own.known[-1])
        reached, reference = own.steps_to(baseline.best), baseline.steps_to(baseline.best)
        if reached and reference:
            found.steps.append(reached)
            found.speed_ups.append(reference / reached)
    return found._replace(seeds=seeds)


def table(results: Results) -> pd.DataFrame:
    """Figure 3, the paper's numbers beside ours: for each system the steps to the baseline's best
    accuracy, how many times fewer these are, and the best accuracy; of ours the mean over seeds,
    the least and the greatest."""
    reference = paper.FIGURE_3[paper.BASELINE].steps_to_72_2
    assert reference
    rows = []
    for system, theirs in paper.FIGURE_3.items():
        ours = outcome(results, system)
        rows.append(
            {
                "system": system,
                "paper_steps": theirs.steps_to_72_2,
                "paper_speed_up": reference / theirs.steps_to_72_2
                if theirs.steps_to_72_2
                else None,
                "paper_best": theirs.best_accuracy,
                **_spread("steps", ours.steps),
                "speed_up": mean(ours.speed_ups),
                **_spread("best", ours.best),
                "seeds": ours.seeds,
                "what": _in_words(ours, theirs.outcome),
            }
        )
    numbers = [name for name in rows[0] if name not in ("system", "seeds", "what")]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, "float64"))


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        name: mean(values),
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
    best = {system: mean(own.best) for system, own in found.items() if own.seeds}
    # Where a seed never gets there, that counts as 0.
    speed = {s: sum(own.speed_ups) / own.seeds for s, own in found.items() if own.seeds}
    baseline = paper.BASELINE

    def faster(system: str, than: str, theirs: str) -> Claim:
        text = f"{system} reaches Inception's best accuracy in fewer steps than {than}"
        if system not in speed or than not in speed:
            return Claim(text, theirs, "", None)
        mine, other = speed[system], speed[than]
        said = f"{_times(mine, found[system])} against {_times(other, found[than])}"
        return Claim(text, theirs, said, mine > other)

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


def _times(speed_up: float, own: Outcome) -> str:
    if not own.speed_ups:
        return "never"
    reached = len(own.speed_ups)
    of = f" (in {reached} of {own.seeds} seeds)" if reached < own.seeds else ""
    return f"{speed_up:.1f} times{of}"


def _share(accuracy: float | None) -> str:
    return "nothing measured" if accuracy is None else f"{accuracy:.2%}"


def _fails(own: Outcome, chance: float) -> bool:
    """Whether each seed diverges or ends with nothing learned."""
    return len(own.diverged) == own.seeds or max(own.last, default=0) <= LEARNS * chance


def _failing(own: Outcome, chance: float) -> str:
    if not own.seeds:
        return ""
    said = []
    if own.diverged:
        steps = ", ".join(f"{step:,}" for step in sorted(own.diverged))
        of = f" in {len(own.diverged)} of {own.seeds} seeds" if own.seeds > 1 else ""
        said.append(f"not finite at step {steps}{of}")
    if len(own.diverged) < own.seeds:
        said.append(f"finite; ends at {_share(max(own.last))}, where chance is {chance:.0%}")
    return "; ".join(said)


def describe(results: Results) -> str:
    """Our figures in words, for those who cannot see them."""
    rows = table(results)
    parts = [
        f"{row['system']}: best accuracy {row['best']:.4f}"
        + (f", Inception's best after {row['steps']:,.0f} steps" if row["steps"] > 0 else "")
        for row in rows.to_dict("records")
        if row["best"] == row["best"]  # not NaN
    ]
    return "; ".join(parts) + "." if parts else "No run has ended yet."
