"""The page Compare: any number of runs over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import streamlit as st

from bnviz import captions, comparisons, distributions, plots, store, tables
from bnviz.plots import CurveOptions
from bnviz.report import report
from bnviz.store import Run
from bnviz.ui import chart, choices, frame
from bnviz.ui.exports import Table, exports, packed
from bnviz.ui.text import literal


def page() -> None:
    frame.title("Compare")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        st.info("There are no runs yet. Start some on the page Lab, then compare them here.")
        return
    chosen = choices.choose_runs(run_ids)
    if not chosen:
        st.info("Choose runs above, or select some on the page Runs and press Compare there.")
        return
    options = _options()
    target, baseline = _target(chosen)
    options = replace(options, target=target)
    frame.watch(_draw, chosen, chosen, options, baseline)
    data = {
        "Accuracy": Table("accuracy", lambda: tables.accuracy_table(chosen)),
        "Steps": Table("steps", lambda: _steps_table(chosen, target, baseline)),
    }
    exports("compare_chart", chosen, _filename(options), _curves(chosen, options), data)
    _differences(chosen)
    layer, unit = _percentiles(chosen)
    with st.container(horizontal=True):
        st.download_button(
            "Report of this comparison",
            partial(report, chosen, layer, unit, options, target, baseline),
            "comparison.html",
            "text/html",
            on_click="ignore",
            icon=":material/article:",
            key="report",
            help="One HTML file that opens anywhere: runs, curves, steps, differences, the unit in "
            "each run, and how to train them again.",
        )
        st.download_button(
            "All of it as zip",
            partial(packed, chosen),
            "bnviz-comparison.zip",
            "application/zip",
            on_click="ignore",
            icon=":material/folder_zip:",
            key="compare-zip",
            help="The runs themselves with their figures. Import on the page Runs opens it on "
            "another machine.",
        )


def _options() -> CurveOptions:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = st.segmented_control(
            "Measure",
            list(comparisons.MEASURES),
            default="test accuracy",
            key="measure",
            bind="query-params",
            required=True,
            help="Test: all test examples, BN with running statistics. Train loss: mean over the "
            "minibatches between two records.",
        )
        x_axis = st.segmented_control(
            "Against",
            list(comparisons.X_AXES),
            default="step",
            key="x",
            bind="query-params",
            required=True,
        )
        log_x = st.toggle("Log x", key="logx", bind="query-params")
        log_y = st.toggle("Log y", key="logy", bind="query-params")
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.99,
            0.0,
            key="smooth",
            bind="query-params",
            width=180,
            help="Weight of the past in an exponential moving average; the raw curve stays faint "
            "behind.",
        )
        seeds_as_one = st.toggle(
            "Seeds as one",
            value=True,
            key="seeds",
            bind="query-params",
            help="Runs that differ in their seed alone become one curve, their mean; the band goes "
            "from the least to the greatest.",
        )
    return CurveOptions(str(measure), str(x_axis), log_x, log_y, smoothing, seeds_as_one)


def _filename(options: CurveOptions) -> str:
    return f"compare-{options.measure.replace(' ', '-')}"


def _curves(chosen: Sequence[Run], options: CurveOptions) -> chart.Build:
    return lambda views: plots.curves(chosen, options, views)


def _draw(chosen: list[Run], options: CurveOptions, baseline: str) -> None:
    version = (*(run.version() for run in chosen), options)
    build = _curves(chosen, options)
    chart.live("compare_chart", version, build, chosen, _filename(options))
    st.caption(literal(captions.about(chosen, of_percentiles=False)))
    _steps(chosen, options.target or 0.0, baseline)


def _target(chosen: Sequence[Run]) -> tuple[float, str]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        target = st.number_input(
            "Steps to reach the test accuracy",
            0.0,
            1.0,
            0.95,
            step=0.01,
            format="%.3f",
            key="target",
            bind="query-params",
            width=260,
            help="The paper's Figure 3 has it for 72.2% on ImageNet.",
        )
        labels = dict(zip((run.run_id for run in chosen), captions.labels(chosen), strict=True))
        plain = [run for run in chosen if run.config.model.normalization == "none"]
        baseline = choices.select(
            "compared with",
            list(labels),
            "baseline",
            (plain or list(chosen))[0].run_id,
            labels.__getitem__,
            width=360,
        )
    return float(target), baseline


def _steps_table(chosen: Sequence[Run], target: float, baseline: str) -> pd.DataFrame:
    return comparisons.steps_table(plots.compared(chosen), target, baseline)


def _steps(chosen: Sequence[Run], target: float, baseline: str) -> None:
    st.dataframe(
        _steps_table(chosen, target, baseline).drop(columns="run_id"),
        hide_index=True,
        key="steps_table",
        column_config={
            "run": st.column_config.TextColumn("Run", width="medium"),
            "steps": st.column_config.NumberColumn(
                f"Steps to {target:g}", format="localized", help="The first evaluation there."
            ),
            "speed_up": st.column_config.NumberColumn("Times fewer steps", format="%.2f"),
            "best_accuracy": st.column_config.NumberColumn("Best accuracy", format="%.4f"),
            "best_at_step": st.column_config.NumberColumn("at step", format="localized"),
        },
        placeholder="not reached",
    )


def _differences(chosen: Sequence[Run]) -> None:
    if len(chosen) < 2:
        return
    st.subheader("What sets them apart", anchor=False)
    table = comparisons.differences(plots.compared(chosen))
    if table.empty:
        st.caption("Nothing: their settings are equal.")
        return
    st.dataframe(table.reset_index(), hide_index=True, key="differences")


def _percentiles(chosen: Sequence[Run]) -> tuple[str, int | None]:
    """One unit in each of the runs, side by side on common axes; which one."""
    st.subheader("The same unit in each run", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer, unit = choices.layer_and_unit(chosen)
    if not layer:
        st.caption("These runs have no layer in common.")
        return layer, unit
    shown = chosen[: distributions.MAX_MULTIPLES]
    if len(shown) < len(chosen):
        st.caption(f"The first {len(shown)} of {len(chosen)} runs.")
    frame.watch(_draw_percentiles, shown, shown, layer, unit)

    def table() -> pd.DataFrame:
        return tables.percentiles_table(shown, layer, tables.unit_of(shown, layer, unit) or 0)

    name = f"percentiles-{layer}-{'typical' if unit is None else f'unit{unit}'}"
    build = _side_by_side(shown, layer, unit)
    exports("sides_chart", shown, name, build, {"Percentiles": Table(name, table)})
    return layer, unit


def _draw_percentiles(chosen: Sequence[Run], layer: str, unit: int | None) -> None:
    version = (*(run.version() for run in chosen), layer, unit)
    name = f"percentiles-{layer}-unit{tables.unit_of(chosen, layer, unit)}"
    chart.live("sides_chart", version, _side_by_side(chosen, layer, unit), chosen, name)
    st.caption(literal(captions.probe(chosen)))


def _side_by_side(chosen: Sequence[Run], layer: str, unit: int | None) -> chart.Build:
    return lambda views: plots.side_by_side(chosen, layer, unit, views)
