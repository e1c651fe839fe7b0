"""The section that checks the paper's identities on a run while it trains."""

from __future__ import annotations

import streamlit as st

from bnviz import identity_figures
from bnviz.plots import Plot, Views
from bnviz.store import Run
from bnviz.style import Drawn
from bnviz.ui import chart, frame, runs
from bnviz.ui.exports import Table, exports
from bnviz.ui.text import literal

INTRODUCTION = f"""
With batch normalization a layer does not depend on the size of its weights (Section 3.3), and its
normalized units have mean 0 and variance 1 (Algorithm 1). Here that is checked on the network of
this run, at each evaluation and in each layer, on examples of the next minibatch. With ε = 0 it
holds exactly, so only the rounding of 16-digit numbers may be left, at most
{identity_figures.TOLERANCE:.0e}. With the ε of the run, which the network has, it deviates most
where a unit hardly varies over the batch.
"""


def section(run: Run) -> None:
    """Verdicts and errors of a run, live; or why there are none."""
    st.subheader("The paper's identities, live", anchor=False)
    model = run.config.model
    if model.normalization != "batch":
        st.info(
            f"{literal(run.config.label)}: the identities are of batch normalization, so nothing "
            "is checked. Choose a run with BN."
        )
        return
    if model.bn_placement != "before":
        st.info(
            "This run normalizes after the nonlinearity. The identities are of BN(Wu), so nothing "
            "is checked. Choose a run with BN before the nonlinearity."
        )
        return
    st.markdown(INTRODUCTION)
    frame.watch(_draw, [run], run)
    if not run.checks().empty:
        data = {"Checks": Table("identities", run.checks)}
        exports("identities_chart", [run], "identities", _figure(run), data)


def _draw(run: Run) -> None:
    checks = run.checks()
    if checks.empty:
        if runs.any_active([run]):
            st.info("Nothing is checked yet; the first checks come within seconds of the start.")
        elif not run.damaged:
            st.info(
                "This run has no checks. It ended before the first one, or an earlier version of "
                "bnviz trained it. Resume it or start it again to have some."
            )
        return
    st.dataframe(
        identity_figures.verdicts(checks),
        hide_index=True,
        key="identities_table",
        placeholder="–",
        column_config={
            "identity": "Identity",
            "formula": "Formula",
            "meaning": "In words",
            "error": st.column_config.NumberColumn("Error, ε = 0", format="%.1e"),
            "where": "in (ε = 0)",
            "error_with_epsilon": st.column_config.NumberColumn(
                f"Error, ε = {run.config.model.bn_epsilon:g}", format="%.1e"
            ),
            "where_with_epsilon": "in (this ε)",
            "verdict": st.column_config.TextColumn(
                "Verdict", help=f"On the error with ε = 0: at most {identity_figures.TOLERANCE:.0e}"
            ),
        },
        column_order=(
            *("formula", "meaning", "verdict", "error", "where"),
            *("error_with_epsilon", "where_with_epsilon"),
        ),
    )
    chart.live("identities_chart", run.version(), _figure(run), [run], "identities")
    st.caption(
        "The largest deviation of any layer, relative. Thick: with the run's ε; thin: with ε = 0. "
        + literal(identity_figures.left_out(checks))
    )


def _figure(run: Run) -> chart.Build:
    def build(views: Views) -> Plot:
        checks = run.checks()
        figure = identity_figures.figure(checks, run.config.training.steps, views.get("x"))
        return Plot(Drawn(figure), identity_figures.describe(checks))

    return build
