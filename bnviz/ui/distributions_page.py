"""The page Distributions: one run in depth."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from bnviz import captions, distributions, drift, store, tables
from bnviz.distributions import Panel
from bnviz.plots import Plot, Views
from bnviz.schema import GRID
from bnviz.store import Run, StoreError
from bnviz.style import Drawn
from bnviz.ui import chart, choices, frame, runs
from bnviz.ui.exports import Table, exports
from bnviz.ui.text import literal

PLAY_TICK_S = 0.4

MEASURES = {
    "shift of the median": "median_shift",
    "change of the spread": "spread_change",
    "distance from the start": "distance_from_first",
    "distance from the record before": "distance_from_previous",
    "saturated share": "saturated_fraction",
    "dead units": "dead",
}


def page() -> None:
    frame.title("Distributions")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        st.info("There are no runs yet. Start some on the page Lab, then look into them here.")
        return
    run = choices.choose_run(run_ids)
    if run is None:
        return
    layer, unit, measure, percentages = _view(run)
    if unit is None:
        frame.watch(_wait, [run], run, layer)
        return
    frame.watch(_draw, [run], run, layer, unit, measure, percentages)
    with st.container(horizontal=True):
        _exports(run, layer, unit, measure, percentages)
    playing = st.session_state.get("play", False)
    st.fragment(_at_one_step, run_every=PLAY_TICK_S if playing else None)(run, layer, unit)
    _many_units(run, layer, percentages)


def _view(run: Run) -> tuple[str, int | None, str, list[int]]:
    """Layer, unit (None before the first record), measure of drift, percentiles."""
    layers = list(run.layers)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.selectbox(
            "Layer", layers, index=len(layers) - 1, key="dlayer", bind="query-params", width=160
        )
        unit = _unit(run, layer)
        measure = st.selectbox(
            "Drift",
            list(MEASURES),
            key="drift",
            bind="query-params",
            width=300,
            help="  \n".join(
                f"**{words}**: {drift.MEASURES[name].explanation}"
                for words, name in MEASURES.items()
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
    return layer, unit, MEASURES[measure], sorted(percentages) or [50]


def _unit(run: Run, layer: str) -> int | None:
    if not _recorded(run, layer):
        return None  # which unit is typical, nobody knows yet
    return int(
        choices.select(
            "Unit",
            [str(unit) for unit in range(run.layers[layer])],
            "dunit",
            str(tables.typical_unit_of([run], layer) or 0),
            width=120,
            help="At first the typical one, whose spread at step 0 is the median of the layer.",
        )
    )


def _recorded(run: Run, layer: str) -> bool:
    return len(run.percentiles(layer, 0)) > 0


def _wait(run: Run, layer: str) -> None:
    if _recorded(run, layer):
        st.rerun()
    runs.progress_rows([run], captions.labels([run]))
    st.info("Nothing is recorded yet; the first points come within seconds of the start.")


def _draw(run: Run, layer: str, unit: int, measure: str, percentages: list[int]) -> None:
    runs.progress_rows([run], captions.labels([run]))
    version = (run.version(), layer)
    st.caption(drift.MEASURES[measure].explanation + " Click a cell to open that unit.")
    chart.live(
        "heatmap",
        (*version, measure),
        _heatmap(run, layer, measure),
        [run],
        f"drift-{layer}-{measure}",
        on_click=partial(_open_cell, run.layers[layer]),
    )
    chart.live(
        "bands_chart",
        (*version, unit, tuple(percentages)),
        _bands(run, layer, unit, percentages),
        [run],
        f"percentiles-{layer}-unit{unit}",
    )
    st.caption(literal(captions.about([run])))


def _heatmap(run: Run, layer: str, measure: str) -> chart.Build:
    def build(views: Views) -> Plot:
        steps, values = _values(run, layer, measure)
        label = drift.MEASURES[measure].label
        figure = distributions.heatmap(values, steps, label, views.get("x"))
        return Plot(Drawn(figure), distributions.describe_heatmap(values, steps, label))

    return build


def _bands(run: Run, layer: str, unit: int, percentages: list[int]) -> chart.Build:
    def build(views: Views) -> Plot:
        table = run.percentiles(layer, unit)
        label = f"{run.config.label}: {layer} unit {unit}"
        kind, length = run.config.model.normalization, run.config.training.steps
        view = views.get("x")
        figure = distributions.bands(table, label, kind, percentages, length, view)
        return Plot(Drawn(figure), distributions.describe_bands(table, label, percentages))

    return build


def _exports(run: Run, layer: str, unit: int, measure: str, percentages: list[int]) -> None:
    def drift_table() -> pd.DataFrame:
        steps, values = _values(run, layer, measure)
        units = np.arange(run.layers[layer])
        return pd.DataFrame(
            {
                "run_id": run.run_id,
                "layer": layer,
                "step": np.repeat(steps, len(units)),
                "unit": np.tile(units, len(steps)),
                measure: values.ravel(),
            }
        )

    name = f"drift-{layer}-{measure}"
    data = {"Drift": Table(name, drift_table)}
    exports("heatmap", [run], name, _heatmap(run, layer, measure), data, "Export the map")
    name = f"percentiles-{layer}-unit{unit}"
    data = {"Percentiles": Table(name, lambda: tables.percentiles_table([run], layer, unit))}
    build = _bands(run, layer, unit, percentages)
    exports("bands_chart", [run], name, build, data, "Export the percentiles")


def _values(run: Run, layer: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (records,) and the measure of drift (records, units)."""
    steps, grid = run.grid(layer)
    if not len(steps):
        return steps, np.empty((0, run.layers[layer]))
    return steps, drift.MEASURES[measure].values(grid, GRID, run.config.model.nonlinearity)


def _open_cell(units: int, point: list[float]) -> None:
    if len(point) == 2 and 0 <= point[0] < units:
        st.session_state["dunit"] = str(int(point[0]))
        st.session_state["at_step"] = int(point[1])
        st.session_state["refresh"] = True  # the other panels follow


def _at_one_step(run: Run, layer: str, unit: int) -> None:
    """The whole distribution at one step; played, step by step."""
    if st.session_state.pop("refresh", False):
        st.rerun()  # to begin ticking, or to end it
    st.subheader("The whole distribution at one step", anchor=False)
    try:
        table = run.percentiles(layer, unit)
    except StoreError as error:
        st.error(literal(str(error)), icon=":material/error:")
        return
    steps = table["step"].tolist()
    if len(steps) < 2:
        st.caption("It needs two records at least.")
        return
    step = _step(steps)

    def build(views: Views) -> Plot:
        figure = distributions.distribution_at(
            table[table["step"] == step],
            [run.config.label],
            [run.config.model.normalization],
            span=(float(table["p0"].min()), float(table["p100"].max())),
        )
        words = f"Cumulative distribution of {layer} unit {unit} at step {step:,}."
        return Plot(Drawn(figure), words)

    name = f"distribution-{layer}-unit{unit}-step{step}"
    chart.live("one_step", (run.version(), name), build, [run], name)
    if not st.session_state.get("play"):
        data = Table(name, lambda: table[table["step"] == step])
        exports("one_step", [run], name, build, {"Percentiles": data})
    if st.session_state.pop("stop_playing", False):
        st.session_state["play"] = False
        st.rerun()


def _step(steps: list[int]) -> int:
    """The step to show, chosen on a slider that can play."""
    wanted = st.session_state.get("at_step", st.query_params.get("at_step", steps[0]))
    if wanted not in steps:
        typed = str(wanted)
        near = int(typed) if typed.isdecimal() and len(typed) < 12 else steps[0]
        wanted = min(steps, key=lambda step: abs(step - near))
    playing = st.session_state.get("play", False)
    if playing:
        # About forty pictures, whatever the number of records.
        ahead = steps.index(wanted) + max(1, len(steps) // 40)
        wanted = steps[min(ahead, len(steps) - 1)]
        st.session_state["stop_playing"] = wanted == steps[-1]
    st.session_state["at_step"] = wanted
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.select_slider("Step", steps, key="at_step", format_func=lambda step: f"{step:,}")
        st.button("Play", key="play_button", icon=":material/play_arrow:", on_click=_play)
    step = int(st.session_state["at_step"])
    if not playing and st.query_params.get("at_step") != str(step):
        st.query_params["at_step"] = str(step)
    return step


def _play() -> None:
    st.session_state["play"] = not st.session_state.get("play", False)
    if st.session_state["play"]:
        st.session_state["at_step"] = 0
    st.session_state["refresh"] = True


def _many_units(run: Run, layer: str, percentages: list[int]) -> None:
    if not st.toggle(
        "Many units",
        key="many",
        bind="query-params",
        help=f"Up to {distributions.MAX_MULTIPLES} units of the layer, evenly spaced.",
    ):
        return
    count = run.layers[layer]
    units = np.unique(np.linspace(0, count - 1, min(count, distributions.MAX_MULTIPLES)).round())

    def data() -> pd.DataFrame:
        table = run.percentiles(layer)
        return table[table["unit"].isin(units)]

    def build(views: Views) -> Plot:
        kind = run.config.model.normalization
        panels = [
            Panel(f"unit {unit}", rows, kind, str(unit)) for unit, rows in data().groupby("unit")
        ]
        drawn = distributions.small_multiples(
            panels,
            f"{run.config.label}: {layer}",
            percentages,
            run.config.training.steps,
            view=views.get("x"),
        )
        return Plot(drawn, f"Percentiles of {len(panels)} units of {layer}.")

    def draw() -> None:
        version = (run.version(), layer, tuple(percentages))
        chart.live("many_chart", version, build, [run], f"percentiles-{layer}")

    frame.watch(draw, [run])
    table = {"Percentiles": Table(f"percentiles-{layer}", data)}
    exports("many_chart", [run], f"percentiles-{layer}", build, table)
