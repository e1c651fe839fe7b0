"""The page Distributions: one run in depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import streamlit as st

from bnviz import captions, distributions, drift, export, store
from bnviz.schema import GRID
from bnviz.store import Run, StoreError
from bnviz.ui import chart, runs, shown
from bnviz.ui.text import literal

PLAY_TICK_S = 0.4

WORDS = {
    "median_shift": "shift of the median",
    "spread_change": "change of the spread",
    "distance_from_first": "distance from the start",
    "distance_from_previous": "distance from the record before",
    "saturated_fraction": "saturated share",
    "dead": "dead units",
}


def page() -> None:
    shown.title("Distributions")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        st.info("There are no runs yet. Start some on the page Lab, then look into them here.")
        return
    run = _choose(run_ids)
    if run is None:
        return
    layer, measure, percentages = _view(run)
    shown.watch(_draw, [run], run, layer, measure, percentages)
    playing = st.session_state.get("play", False)
    st.fragment(_at_one_step, run_every=PLAY_TICK_S if playing else None)(run, layer)
    _many_units(run, layer, percentages)


def _choose(run_ids: list[str]) -> Run | None:
    if "of" not in st.session_state:
        wanted = st.query_params.get("of", "")
        if wanted and wanted not in run_ids:
            st.warning(f"The address names a run that is not here: {literal(wanted[:80])}")
        candidates = [wanted, *st.session_state.get("shown", []), *run_ids]
        st.session_state["of"] = next(run_id for run_id in candidates if run_id in run_ids)
    elif st.session_state["of"] not in run_ids:
        st.session_state["of"] = run_ids[0]
    chosen = st.selectbox("Run", run_ids, key="of", format_func=shown.name)
    if st.query_params.get("of") != chosen:
        st.query_params["of"] = chosen
    return runs.readable(chosen)


def _view(run: Run) -> tuple[str, str, list[int]]:
    layers = list(run.layers)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.selectbox(
            "Layer", layers, index=len(layers) - 1, key="dlayer", bind="query-params", width=160
        )
        measure = st.selectbox(
            "Drift",
            list(drift.MEASURES),
            key="drift",
            bind="query-params",
            format_func=WORDS.__getitem__,
            width=300,
            help="  \n".join(
                f"**{WORDS[name]}**: {one.explanation}" for name, one in drift.MEASURES.items()
            ),
        )
        percentages = st.multiselect(
            "Percentiles",
            list(GRID),
            default=[15, 50, 85],
            key="percentages",
            bind="query-params",
            placeholder="choose some",
            help="The paper draws the 15th, 50th and 85th. All of these are stored, exactly.",
        )
    return layer, measure, sorted(percentages) or [50]


def _draw(run: Run, layer: str, measure: str, percentages: list[int]) -> None:
    runs.progress_rows([run], captions.labels([run]))
    steps, values = _values(run, layer, measure)
    if not len(steps):
        st.info("Nothing is recorded yet; the first points come within seconds of the start.")
        return
    key = (run.version(), layer, measure)
    if st.session_state.get("heat", (None,))[0] != key:
        label = drift.MEASURES[measure].label
        figure = distributions.heatmap(values, steps, label)
        alt = distributions.describe_heatmap(values, steps, label)
        st.session_state["heat"] = key, chart.draw(figure, figure, alt, f"drift-{layer}-{measure}")
    st.caption(drift.MEASURES[measure].explanation + " Click a cell to open that unit.")
    chart.show(
        st.session_state["heat"][1], key="heatmap", on_click=partial(_open_cell, run.layers[layer])
    )
    unit = _unit(run, layer)
    table = run.percentiles(layer, unit)
    label = f"{run.config.label}: {layer} unit {unit}"
    bands = (*key, unit, tuple(percentages))
    if st.session_state.get("bands", (None,))[0] != bands:
        kind, length = run.config.model.normalization, run.config.training.steps
        figure = distributions.bands(table, label, kind, percentages, length)
        alt = distributions.describe_bands(table, label, percentages)
        drawing = chart.draw(figure, figure, alt, f"percentiles-{layer}-unit{unit}")
        st.session_state["bands"] = bands, drawing
    chart.show(st.session_state["bands"][1], key="bands_chart")
    st.caption(literal(f"{captions.shared_settings([run])}. {captions.probe([run])}"))
    _export(run, layer, unit)


def _values(run: Run, layer: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (records,) and the measure of drift (records, units), computed anew only for new
    records."""
    key = (run.version(), layer, measure)
    if st.session_state.get("drift_values", (None,))[0] != key:
        steps, grid = run.grid(layer)
        values = (
            drift.MEASURES[measure].values(grid, GRID, run.config.model.nonlinearity)
            if len(steps)
            else np.empty((0, run.layers[layer]))
        )
        st.session_state["drift_values"] = key, steps, values
    _, steps, values = st.session_state["drift_values"]
    return steps, values


def _open_cell(units: int, point: list[float]) -> None:
    if len(point) == 2 and 0 <= point[0] < units:
        st.session_state["dunit"] = str(int(point[0]))
        st.session_state["at_step"] = int(point[1])
        st.session_state["refresh"] = True  # the other panels follow


def _unit(run: Run, layer: str) -> int:
    options = [str(unit) for unit in range(run.layers[layer])]
    if st.session_state.get("dunit") not in options:
        typical = export.typical_unit_of([run], layer)
        st.session_state["dunit"] = str(typical or 0)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        return int(st.selectbox("Unit", options, key="dunit", width=160))


def _at_one_step(run: Run, layer: str) -> None:
    """The whole distribution at one step; played, step by step."""
    if st.session_state.pop("refresh", False):
        st.rerun()  # to begin ticking, or to end it
    st.subheader("The whole distribution at one step", anchor=False)
    try:
        unit = int(st.session_state.get("dunit") or 0)
        table = run.percentiles(layer, unit)
        steps = table["step"].tolist()
        if len(steps) < 2:
            st.caption("It needs two records at least.")
            return
        wanted = st.session_state.get("at_step", steps[0])
        if wanted not in steps:
            wanted = min(steps, key=lambda step: abs(step - wanted))
        if st.session_state.get("play"):
            # About forty pictures, whatever the number of records.
            ahead = steps.index(wanted) + max(1, len(steps) // 40)
            wanted = steps[min(ahead, len(steps) - 1)]
            if wanted == steps[-1]:
                st.session_state["stop_playing"] = True
        st.session_state["at_step"] = wanted
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.select_slider("Step", steps, key="at_step", format_func=lambda step: f"{step:,}")
            st.button("Play", key="play_button", icon=":material/play_arrow:", on_click=_play)
        figure = distributions.distribution_at(
            table[table["step"] == st.session_state["at_step"]],
            [run.config.label],
            [run.config.model.normalization],
            span=(float(table["p0"].min()), float(table["p100"].max())),
        )
    except StoreError as error:
        st.error(literal(str(error)), icon=":material/error:")
        return
    alt = f"Cumulative distribution of {layer} unit {unit} at step {st.session_state['at_step']:,}."
    chart.show(chart.draw(figure, figure, alt, f"distribution-{layer}-unit{unit}"), key="one_step")
    if st.session_state.pop("stop_playing", False):
        st.session_state["play"] = False
        st.rerun()


def _play() -> None:
    st.session_state["play"] = not st.session_state.get("play", False)
    if st.session_state["play"]:
        st.session_state["at_step"] = 0
    st.session_state["refresh"] = True


def _many_units(run: Run, layer: str, percentages: Sequence[int]) -> None:
    if not st.toggle(
        "Many units",
        key="many",
        bind="query-params",
        help=f"Up to {distributions.MAX_MULTIPLES} units of the layer, evenly spaced.",
    ):
        return
    count = run.layers[layer]
    units = np.unique(np.linspace(0, count - 1, min(count, distributions.MAX_MULTIPLES)).round())
    try:
        table = run.percentiles(layer)
    except StoreError as error:
        st.error(literal(str(error)), icon=":material/error:")
        return
    tables = {int(unit): table[table["unit"] == unit] for unit in units}
    label = f"{run.config.label}: {layer}"
    kind, length = run.config.model.normalization, run.config.training.steps
    wide, narrow = (
        distributions.small_multiples(tables, label, kind, percentages, length, columns=columns)
        for columns in (4, 2)
    )
    alt = f"Percentiles of {len(tables)} units of {layer}."
    chart.show(chart.draw(wide, narrow, alt, f"percentiles-{layer}"), key="many_chart")


def _export(run: Run, layer: str, unit: int) -> None:
    def table(write: export.Writer) -> bytes:
        return write(export.percentiles_table([run], layer, unit), export.origin([run]))

    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Download", width="content")
        st.download_button(
            "Percentiles CSV",
            lambda: table(export.to_csv),
            f"percentiles-{layer}-unit{unit}.csv",
            "text/csv",
            on_click="ignore",
            key="distributions-csv",
        )
        st.download_button(
            "Percentiles Parquet",
            lambda: table(export.to_parquet),
            f"percentiles-{layer}-unit{unit}.parquet",
            "application/vnd.apache.parquet",
            on_click="ignore",
            key="distributions-parquet",
        )
