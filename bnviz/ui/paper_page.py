"""The page Paper: the paper's figures as they are there, beside ours, and what it leaves open."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from bnviz import captions, figures, paper, plots, tables
from bnviz.plots import Plot, Views
from bnviz.presets import Preset, find_preset
from bnviz.store import Run
from bnviz.ui import chart, frame, paper_ensemble, paper_runs, paper_systems, runs
from bnviz.ui.exports import Table, exports
from bnviz.ui.text import literal

STATED = """
| Setting | The paper (Section 4.1) | Here |
|---|---|---|
| Input | 28 × 28 binary images | the same; a pixel is 1 above grey level 127 |
| Network | 3 fully connected hidden layers of 100 sigmoid units, 10 outputs | the same |
| Loss | cross-entropy | the same, the mean over the minibatch |
| Minibatch, steps | 60 examples, 50,000 steps | the same |
| Batch normalization | on each hidden layer, before the sigmoid | the same, no bias (Section 3.2) |
| Initial weights | small random Gaussian values | Gaussian with the std that the preset states |
"""

OPEN = """
The paper does not state these, so what stands here is our choice:

- **Learning rate, optimizer, std of the initial weights.** Plain SGD; rate and std are those of 16
  pairs tried that bring both accuracy curves closest to the paper's.
- **ε and the moving averages' momentum.** PyTorch's defaults, 10⁻⁵ and 0.1.
- **Initial γ and β.** 1 and 0.
- **Which unit panels (b) and (c) show.** “One typical sigmoid” of the last hidden layer. Ours is
  the unit whose spread at step 0 is the median of the layer, a rule blind to the outcome.
- **Over which examples the percentiles are taken.** Ours: 500 test digits, the same at every step.
- **The x axis of (b) and (c)** has no numbers; that it spans the 50,000 steps is an assumption.
- **What “held-out test data” is.** Ours: all 10,000 test digits.
"""


def page() -> None:
    frame.title("The paper's figures, and ours")
    st.caption(
        "Ioffe & Szegedy, “Batch Normalization: Accelerating Deep Network Training by Reducing "
        "Internal Covariate Shift” (2015), arXiv:1502.03167v3, Section 4."
    )
    sections = {
        "Figure 1": _figure1,
        "Figures 2 and 3": paper_systems.section,
        "Figure 4": paper_ensemble.section,
    }
    figure = st.segmented_control(
        "Figure",
        list(sections),
        default="Figure 1",
        key="figure",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
    )
    sections[figure]()


def _figure1() -> None:
    preset = find_preset("figure1")
    st.subheader("The paper's, digitised from its vector graphics", anchor=False)
    name, build = "figure1-paper", _theirs(preset)
    chart.live("paper_chart", (preset.name,), build, [], name, with_paper=True)
    digitised = {"Curves": Table(name, paper.digitised, with_paper=True)}
    exports("paper_chart", [], name, build, digitised, with_paper=True)
    st.subheader("Ours", anchor=False)
    found = paper_runs.find(preset)
    ours = [own[0] for own in found.values() if 0 in own]
    paper_runs.button(
        preset,
        found,
        1,
        "Start Figure 1",
        "The two runs take a minute or two on two CPU cores.",
    )
    if ours:
        frame.watch(_draw, ours, ours)
        _export(ours)
    st.subheader("What the paper states", anchor=False)
    st.markdown(STATED)
    st.subheader("What it leaves open, and what we chose", anchor=False)
    st.markdown(OPEN)
    st.caption(literal(preset.why))


def _theirs(preset: Preset) -> chart.Build:
    def build(views: Views) -> Plot:
        data = [figures.not_started(config) for config in preset.runs.values()]
        drawn = figures.figure1(data, "last hidden layer,", "one unit", with_paper=True)
        words = "test accuracy, and percentiles of one unit without and with BN."
        return Plot(drawn, f"The paper's Figure 1: {words}")

    return build


def _ours(pair: list[Run]) -> chart.Build:
    return lambda views: plots.figure1(pair, _layer(pair), None, views=views)


def _layer(pair: list[Run]) -> str:
    return list(pair[0].layers)[-1]


def _export(pair: list[Run]) -> None:
    def percentiles() -> pd.DataFrame:
        layer = _layer(pair)
        return tables.percentiles_table(pair, layer, tables.typical_unit_of(pair, layer) or 0)

    data = {
        "Percentiles": Table("percentiles-typical-unit", percentiles),
        "Accuracy": Table("accuracy", lambda: tables.accuracy_table(pair)),
        "Comparison": Table("accuracy-paper-and-ours", lambda: accuracies(pair), with_paper=True),
    }
    exports("ours_chart", pair, "figure1-ours", _ours(pair), data)


def _draw(pair: list[Run]) -> None:
    runs.progress_rows(pair, captions.labels(pair))
    version = tuple(run.version() for run in pair)
    chart.live("ours_chart", version, _ours(pair), pair, "figure1-ours")
    st.caption(literal(captions.about(pair)))
    table = accuracies(pair)
    st.dataframe(
        table,
        hide_index=True,
        key="paper_table",
        placeholder="–",
        column_config={
            "step": st.column_config.NumberColumn(format="localized"),
            **{name: st.column_config.NumberColumn(format="%.3f") for name in table.columns[1:]},
        },
    )


def accuracies(pair: list[Run]) -> pd.DataFrame:
    """Test accuracy at the steps where the paper's curves have their knots, theirs and ours; ours
    is read off between evaluations, and missing after the last one."""
    table = {"step": np.array(paper.COMPARED_STEPS)}
    for run in pair:
        tests = run.metrics().query("split == 'test'")
        words = "with BN" if run.config.model.normalization == "batch" else "without BN"
        table[f"{words}, the paper"] = paper.accuracy_at(run.config.model.normalization)
        table[f"{words}, ours"] = (
            np.interp(paper.COMPARED_STEPS, tests["step"], tests["accuracy"], right=np.nan)
            if len(tests)
            else np.full(len(paper.COMPARED_STEPS), np.nan)
        )
    return pd.DataFrame(table)
