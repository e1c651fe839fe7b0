"""The page Compare: any number of runs over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from bnviz import captions, comparisons, export, store
from bnviz.comparisons import Compared, Curve
from bnviz.config import TRAIN_EXAMPLES
from bnviz.store import Run
from bnviz.ui import chart, shown
from bnviz.ui.text import literal


@dataclass(frozen=True)
class View:
    """What the controls ask for."""

    measure: str
    x_axis: str
    log_x: bool
    log_y: bool
    smoothing: float
    seeds_as_one: bool


def page() -> None:
    shown.title("Compare")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        st.info("There are no runs yet. Start some on the page Lab, then compare them here.")
        return
    chosen = shown.choose(run_ids)
    if not chosen:
        st.info("Choose runs above, or select some on the page Runs and press Compare there.")
        return
    view = _view()
    shown.watch(_draw, chosen, chosen, view)
    _differences(chosen)
    _export(chosen)


def _view() -> View:
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
    return View(str(measure), str(x_axis), log_x, log_y, smoothing, seeds_as_one)


def compared(chosen: Sequence[Run]) -> list[Compared]:
    """What the comparison needs of each run."""
    return [
        Compared(
            run.run_id,
            label,
            run.metrics(),
            run.config.flat(),
            TRAIN_EXAMPLES[run.config.data.dataset] / run.config.training.batch_size,
        )
        for run, label in zip(chosen, captions.labels(chosen), strict=True)
    ]


def _curves(data: Sequence[Compared], view: View) -> list[Curve]:
    groups = comparisons.over_seeds(data) if view.seeds_as_one else [[run] for run in data]
    return [comparisons.mean_curve(group, view.measure, view.x_axis) for group in groups]


def _draw(chosen: list[Run], view: View) -> None:
    version = (*(run.version() for run in chosen), view)
    data = compared(chosen)
    target, baseline = _target(data)
    if st.session_state.get("compare_drawn", (None,))[0] != (version, target):
        curves = _curves(data, view)
        accuracy = target if view.measure == "test accuracy" else None
        figure = comparisons.figure(
            curves,
            view.measure,
            view.x_axis,
            smoothing=view.smoothing,
            log_x=view.log_x,
            log_y=view.log_y,
            target=accuracy,
        )
        alt = comparisons.describe(curves, view.measure)
        drawing = chart.draw(figure, figure, alt, f"compare-{view.measure.replace(' ', '-')}")
        st.session_state["compare_drawn"] = (version, target), drawing
    chart.show(st.session_state["compare_drawn"][1], key="compare_chart")
    st.caption(literal(captions.shared_settings(chosen)))
    _steps(data, target, baseline)


def _target(data: Sequence[Compared]) -> tuple[float, str]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        target = st.number_input(
            "Steps to reach the test accuracy",
            0.0,
            1.0,
            0.95,
            step=0.01,
            format="%.3f",
            key="target",
            width=260,
            help="As the paper's Figure 3 has it for 72.2% on ImageNet.",
        )
        labels = {run.run_id: run.label for run in data}
        plain = [run for run in data if run.settings["model.normalization"] == "none"]
        baseline = st.selectbox(
            "compared with",
            list(labels),
            index=list(labels).index((plain or data)[0].run_id),
            key="baseline",
            format_func=labels.__getitem__,
            width=360,
        )
    return float(target), str(baseline)


def _steps(data: Sequence[Compared], target: float, baseline: str) -> None:
    table = comparisons.steps_table(data, target, baseline).drop(columns="run_id")
    st.dataframe(
        table,
        hide_index=True,
        key="steps_table",
        column_config={
            "run": st.column_config.TextColumn("Run", width="large"),
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
    table = comparisons.differences(compared(chosen))
    if table.empty:
        st.caption("Nothing: their settings are equal.")
        return
    st.dataframe(table.reset_index(), hide_index=True, key="differences")


def _export(chosen: Sequence[Run]) -> None:
    def accuracy(write: export.Writer) -> bytes:
        return write(export.accuracy_table(chosen), export.origin(chosen))

    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Download", width="content")
        st.download_button(
            "Accuracy CSV",
            lambda: accuracy(export.to_csv),
            "accuracy.csv",
            "text/csv",
            on_click="ignore",
            key="compare-csv",
        )
        st.download_button(
            "Accuracy Parquet",
            lambda: accuracy(export.to_parquet),
            "accuracy.parquet",
            "application/vnd.apache.parquet",
            on_click="ignore",
            key="compare-parquet",
        )
