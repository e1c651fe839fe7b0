"""Figures 2 and 3 on the page Paper: the systems' accuracy against steps, theirs and ours."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from bnviz import comparisons, paper, plots, system_figures, systems
from bnviz.comparisons import Curve
from bnviz.plots import Plot, Views
from bnviz.presets import Preset, find_preset
from bnviz.processes import true_status
from bnviz.status import AT_END, State
from bnviz.store import Run
from bnviz.systems import SYSTEMS, Result, Results
from bnviz.ui import chart, frame, paper_runs
from bnviz.ui.exports import Table, exports
from bnviz.ui.paper_runs import Found
from bnviz.ui.text import literal

MOST_SEEDS = 10

VERDICTS = {True: "holds", False: "does not hold", None: "not known yet"}

READING = """
A diamond marks where a system reaches the best accuracy of Inception, the dotted line. **Theirs is
ImageNet**, in millions of steps, with a thousand classes; **ours is the twin** on digits, so
compare the order and the shape, not the numbers. Of several seeds the line is their mean, the area
goes from the least to the greatest, and Inception's best is that of the same seed.
"""


def section() -> None:
    preset = find_preset("figure2")
    st.subheader("The paper's, digitised from its vector graphics", anchor=False)
    name = "figure2-paper"
    build = _theirs
    chart.live("paper_chart2", (name,), build, [], name, with_paper=True)
    digitised = {"Curves": Table(name, partial(paper.digitised, 2), with_paper=True)}
    exports("paper_chart2", [], name, build, digitised, with_paper=True)
    st.subheader("Ours", anchor=False)
    found = paper_runs.find(preset)
    seeds = st.number_input(
        "Seeds",
        1,
        MOST_SEEDS,
        1,
        key="paper_seeds",
        bind="query-params",
        width=160,
        help="Runs of each system, with other initial weights and another order of the digits. "
        "The table tells mean, least and greatest.",
    )
    paper_runs.button(
        preset,
        found,
        int(seeds),
        "Start Figure 2",
        "Seven runs of about five minutes each on one CPU core, two at once on two cores. The "
        "first curves grow here within half a minute.",
    )
    chosen = _called(found)
    if chosen:
        frame.watch(_draw, list(chosen.values()), preset, found)
        _export(preset, found)
    st.subheader("What the systems are", anchor=False)
    st.caption(literal(preset.why))
    st.dataframe(_settings(preset), hide_index=True, key="systems_settings")


def _called(found: Found) -> dict[str, Run]:
    several = max((len(own) for own in found.values()), default=0) > 1
    return {
        SYSTEMS[name] + (f", seed {run.config.training.seed}" if several else ""): run
        for name, own in found.items()
        for run in reversed(own.values())
    }


def _theirs(views: Views) -> Plot:
    words = "; ".join(
        f"{system}: {row.best_accuracy:.1%}"
        + (f", 72.2% after {row.steps_to_72_2 / 1e6:g} million steps" if row.steps_to_72_2 else "")
        for system, row in paper.FIGURE_3.items()
        if row.best_accuracy
    )
    return Plot(system_figures.theirs(), f"The paper's Figure 2, ImageNet. {words}.")


def results(found: Found) -> Results:
    """How the runs of the preset stand."""
    return {
        SYSTEMS[name]: {seed: _result(run) for seed, run in own.items()}
        for name, own in found.items()
    }


def _result(run: Run) -> Result:
    tests = run.metrics("test")
    status = true_status(run)
    return Result(
        tests["step"].to_numpy(dtype=np.int64),
        tests["accuracy"].to_numpy(dtype=np.float64),
        status.state in AT_END,
        status.step if status.state is State.DIVERGED else None,
    )


def _ours(preset: Preset, found: Found) -> chart.Build:
    def build(views: Views) -> Plot:
        curves: dict[str, Curve] = {}
        for name, own in found.items():
            group = [one for one in plots.compared(list(own.values())) if len(one.metrics)]
            if group:
                mean = comparisons.mean_curve(group, "test accuracy", "step")
                system = SYSTEMS[name]
                more = f", mean of {len(group)} seeds" if len(group) > 1 else ""
                curves[system] = replace(mean, label=system + more, uid=system)
        now = results(found)
        steps = max(config.training.steps for config in preset.runs.values())
        return Plot(system_figures.ours(curves, now, steps), f"Ours: {systems.describe(now)}")

    return build


def _draw(preset: Preset, found: Found) -> None:
    chosen = _called(found)
    paper_runs.progress(chosen, "figure2")
    paper_runs.stopped(chosen.values())
    now = results(found)
    version = tuple(
        (run.version(), own.ended)
        for run, own in zip(
            (run for own in found.values() for run in own.values()),
            (result for own in now.values() for result in own.values()),
            strict=True,
        )
    )
    build = _ours(preset, found)
    chart.live("ours_chart2", version, build, list(chosen.values()), "figure2-ours")
    st.caption(READING)
    st.markdown("**Figure 3: steps to the best accuracy of Inception, and the best accuracy**")
    _table(systems.table(now))
    classes = 10  # of MNIST
    _claims(systems.claims(now, 1 / classes))


def _table(rows: pd.DataFrame) -> None:
    number = st.column_config.NumberColumn
    whole, share = partial(number, format="localized"), partial(number, format="percent")
    st.dataframe(
        rows.assign(
            paper_steps=rows["paper_steps"] / 1e6,
            **{name: rows[name].round() for name in ("steps", "steps_least", "steps_most")},
        ),
        hide_index=True,
        key="figure3",
        placeholder="–",
        column_config={
            "system": "System",
            "paper_steps": number("paper: million steps", format="%.1f"),
            "paper_speed_up": number("paper: times fewer", format="%.1f"),
            "paper_best": share("paper: best accuracy"),
            "steps": whole("ours: steps"),
            "steps_least": whole("least"),
            "steps_most": whole("most"),
            "speed_up": number("ours: times fewer", format="%.1f"),
            "best": share("ours: best accuracy"),
            "best_least": share("worst seed"),
            "best_most": share("best seed"),
            "seeds": whole("seeds", help="In which this system and Inception have ended."),
            "what": "Note",
        },
    )


def _claims(claims: list[systems.Claim]) -> None:
    known = [claim for claim in claims if claim.holds is not None]
    st.markdown("**The paper's relations, and ours**")
    if known:
        kept = sum(claim.holds is True for claim in known)
        st.caption(f"{kept} of {len(known)} hold of the twin.")
    st.dataframe(
        pd.DataFrame(
            [(c.text, VERDICTS[c.holds], c.paper, c.ours) for c in claims],
            columns=["relation", "ours", "in the paper", "in our runs"],
        ),
        hide_index=True,
        key="claims",
        placeholder="–",
    )


def _export(preset: Preset, found: Found) -> None:
    chosen = [run for own in found.values() for run in own.values()]

    def curves() -> pd.DataFrame:
        return pd.concat(
            [
                run.metrics("test").assign(system=SYSTEMS[name], seed=run.config.training.seed)
                for name, own in found.items()
                for run in own.values()
            ],
            ignore_index=True,
        )

    def table() -> pd.DataFrame:
        return systems.table(results(found))

    data = {
        "Curves": Table("figure2-accuracy", curves),
        "Figure 3": Table("figure3", table, with_paper=True),
    }
    exports("ours_chart2", chosen, "figure2-ours", _ours(preset, found), data)


def _settings(preset: Preset) -> pd.DataFrame:
    """The settings in which the systems differ."""
    flat = {SYSTEMS[name]: config.flat() for name, config in preset.runs.items()}
    differing = {"model.normalization", *preset.varied}
    paths = [path for path in next(iter(flat.values())) if path in differing]
    return pd.DataFrame(
        [
            {"system": system, **{path: str(values[path]) for path in paths}}
            for system, values in flat.items()
        ]
    ).rename(columns={path: path.rpartition(".")[2].replace("_", " ") for path in paths})
