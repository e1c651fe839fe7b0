"""The section with Section 2's example: a bias that grows without bound."""

from __future__ import annotations

import streamlit as st

from bnviz import bias_figures
from bnviz.plots import Plot, Views
from bnviz.ui import chart
from bnviz.ui.exports import Table, exports

SEED = 0

INTRODUCTION = """
Why must the gradient go through the normalization? In the paper's example (Section 2) a layer adds
a bias, x = u + b, and subtracts the mean, x̂ = x − E[x]. A gradient step that takes E[x] for a
constant changes b, and the normalization takes just that away again: output and loss stay as they
are, the next step is the same, and b grows without bound. The gradient that goes through E[x]
leaves b alone, as b cannot change anything. The two losses are the same.
"""

SCALING = """
Where the layer x = w·u + b is also divided by its standard deviation, which the gradient ignores,
it gets worse: the size of w is taken away, too, yet each step here makes w smaller, and the steps
grow as 1/|w|. Near 0 they throw b and w far, and where w changes its sign the loss jumps. The paper
saw its models blow up (Section 2).
"""


def section() -> None:
    """The example, computed anew at each change."""
    st.subheader("A bias that grows without bound", anchor=False)
    st.markdown(INTRODUCTION)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        rate = st.slider(
            "Learning rate", 0.01, 1.0, 0.1, 0.01, key="bias_rate", bind="query-params", width=300
        )
        steps = st.slider(
            "Steps", 10, 1_000, 200, 10, key="bias_steps", bind="query-params", width=300
        )
        scaling = st.toggle(
            "Scaling, too",
            key="bias_scaling",
            bind="query-params",
            help="Also divide by the standard deviation.",
        )
    if scaling:
        st.markdown(SCALING)
    trajectories = bias_figures.simulated(steps, rate, SEED, scaling)

    def build(views: Views) -> Plot:
        return Plot(bias_figures.figure(trajectories), bias_figures.describe(trajectories))

    name = f"bias-growth-rate{rate:g}-steps{steps}{'-scaling' if scaling else ''}"
    chart.live("bias_chart", (rate, steps, scaling), build, [], name)
    data = {"Steps": Table(name, lambda: bias_figures.table(trajectories, rate))}
    exports("bias_chart", [], name, build, data)
