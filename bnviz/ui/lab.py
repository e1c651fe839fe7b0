"""The page Lab: set up, start, watch the paper's Figure 1 grow, export it."""

from __future__ import annotations

import streamlit as st

from bnviz import export, figures, jobs, store
from bnviz.store import Run, StoreError
from bnviz.ui import chart, controls, runs
from bnviz.ui.text import literal

TICK_S = 1.0
TYPICAL = "typical"

INTRODUCTION = """
This dashboard trains a small network on handwritten digits twice, **without** and **with batch
normalization**, and draws Figure 1 of Ioffe & Szegedy (2015) while it trains.
Panel (a) shows how the test accuracy rises.
Panels (b) and (c) show where the input of one unit lies: the middle line is its median over the
test digits, and seven tenths of them fall between the outer two.
Without BN these lines wander, so the next layer must keep adapting, which the paper calls *internal
covariate shift*; with BN they stay in place.
"""

READING = """
- **(a)** accuracy on all 10,000 test digits; BN uses its running statistics.
- **(b), (c), …** 15th, 50th and 85th percentile of one unit's *pre-activation* (the input of its
  nonlinearity, after BN where there is BN), exact, over a fixed sample of test digits, with BN
  normalizing by that sample's own statistics, as the paper's training network does.
- **The typical unit** is the one whose spread (85th minus 15th percentile) at step 0 is the median
  of its layer, in the run without BN where there is one. The rule looks at step 0 alone, so it is
  blind to the outcome; all panels show the same unit. Choose any other above.
- **The paper's curves** are digitised from its Figure 1. Its panels (b) and (c) have no numbers on
  their x axis; that it spans the 50,000 steps is an assumption. Which unit it shows is not stated.
"""


def page() -> None:
    with st.sidebar:
        setup = controls.sidebar(_start)
    st.html("<style>.stMainBlockContainer { padding-top: 2.5rem; }</style>")
    st.header("Internal covariate shift, live", anchor=False)
    if problem := st.session_state.pop("start_problem", None):
        st.error(literal(problem), icon=":material/block:")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        _empty(setup)
        return
    chosen = _choose(run_ids)
    if not chosen:
        st.info("Choose runs above to see them, or press Start to train new ones.")
        return
    layer, unit, with_paper = _view(chosen)
    live = runs.any_unfinished(chosen)
    st.fragment(_watch, run_every=TICK_S if live else None)(chosen, layer, unit, with_paper, live)
    _export(chosen, layer, unit)
    with st.expander("How to read this"):
        st.markdown(READING)
    with st.expander(f"About the preset {setup.preset.name}"):
        st.markdown(f"**{literal(setup.preset.title)}**\n\n{literal(setup.preset.why)}")


def _start(setup: controls.Setup) -> None:
    try:
        started = [
            jobs.submit(config, store.default_root(), name) for name, config in setup.runs.items()
        ]
    except StoreError as error:
        st.session_state["start_problem"] = str(error)
        return
    st.session_state["runs"] = started


def _empty(setup: controls.Setup) -> None:
    st.markdown(INTRODUCTION)
    st.button(
        "Start Figure 1",
        type="primary",
        icon=":material/play_arrow:",
        on_click=_start,
        args=(setup,),
        disabled=bool(setup.problems),
        key="start_figure1",
    )
    steps = max((config.training.steps for config in setup.runs.values()), default=0)
    st.caption(
        f"Two runs of {steps:,} steps; a minute or two on two CPU cores. "
        "The first points come within seconds. Below is what the paper measured."
    )
    data = [figures.not_started(config) for config in setup.runs.values()]
    layer = next((list(config.model.layers)[-1] for config in setup.runs.values()), "")
    _draw(data, layer, "typical unit", with_paper=True, alt="The paper's Figure 1, digitised.")


def _draw(
    data: list[figures.RunData],
    layer: str,
    unit: str,
    *,
    with_paper: bool,
    alt: str,
) -> None:
    wide, narrow = (
        figures.figure1(data, layer, unit, with_paper=with_paper, stacked=stacked)
        for stacked in (False, True)
    )
    filename = f"figure1-{layer}-{unit.replace(' ', '')}"
    chart.show(wide, narrow, key="figure1", alt=alt, filename=filename)


def _choose(run_ids: list[str]) -> list[Run]:
    """The runs to show. The address holds them, so a reload or another tab shows the same."""
    if "runs" not in st.session_state:
        wanted = st.query_params.get_all("run")
        st.session_state["runs"] = [run_id for run_id in wanted if run_id in run_ids]
        for run_id in set(wanted) - set(run_ids):
            st.warning(f"The address names a run that is not here: {literal(run_id[:80])}")
        if not wanted:
            st.session_state["runs"] = runs.latest(run_ids)
    st.session_state["runs"] = [r for r in st.session_state["runs"] if r in run_ids]
    names = {}
    for run_id in run_ids:
        names[run_id] = f"{run_id[9:11]}:{run_id[11:13]}:{run_id[13:15]} {run_id[16:]}"
    selected = st.multiselect(
        "Runs shown",
        run_ids,
        key="runs",
        format_func=names.__getitem__,
        placeholder="Choose runs",
        help="Newest first. Percentile panels are drawn for the first four.",
    )
    if st.query_params.get_all("run") != selected:
        st.query_params["run"] = selected
    found = []
    for run_id in selected:
        try:
            run = runs.find(run_id)
            run.config, run.status  # noqa: B018  readable at all?
            found.append(run)
        except StoreError as error:
            st.error(literal(str(error)), icon=":material/error:")
    return sorted(found, key=lambda run: (run.config.model.normalization == "batch", run.run_id))


def _view(chosen: list[Run]) -> tuple[str, int | None, bool]:
    """Which layer and unit the percentile panels show (unit None: the typical one)."""
    layers = {name: units for run in reversed(chosen) for name, units in run.layers.items()}
    shared = [name for name in layers if all(name in run.layers for run in chosen)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.selectbox(
            "Layer",
            shared,
            index=len(shared) - 1,
            key="layer",
            bind="query-params",
            width=160,
            help="hidden1 is next to the input. The paper shows a unit of the last hidden layer.",
        )
        units = min(run.layers[layer] for run in chosen)
        choice = st.selectbox(
            "Unit",
            [TYPICAL, *map(str, range(units))],
            key="unit",
            bind="query-params",
            width=160,
            help="typical: its spread at step 0 is the median of the layer (see below).",
        )
        with_paper = st.toggle(
            "The paper's curves",
            key="paper",
            bind="query-params",
            help="Lay the digitised curves of the paper's Figure 1 over ours.",
        )
    if choice != TYPICAL:
        return layer, int(choice), with_paper
    return layer, None, with_paper


def _watch(chosen: list[Run], layer: str, unit: int | None, with_paper: bool, live: bool) -> None:
    """Progress and chart: drawn anew at every tick while a run is unfinished."""
    names = export.labels(chosen)
    for run, name in zip(chosen, names, strict=True):
        runs.progress_row(run, name)
    shown = unit if unit is not None else export.typical_unit_of(chosen, layer)
    # Before step 0 is recorded there is no typical unit, and no row of any unit either.
    data = export.run_data(chosen, layer, shown or 0)
    title = f"unit {shown}" if shown is not None else "unit …"
    if unit is None and shown is not None:
        st.caption(
            f"Typical unit of {layer}: {shown}, whose spread at step 0 is the median of the layer."
        )
    alt = figures.describe(data, layer, shown or 0)
    _draw(data, layer, title, with_paper=with_paper, alt=alt)
    if live and not runs.any_unfinished(chosen):
        st.rerun()  # the last run has ended: stop ticking


def _export(chosen: list[Run], layer: str, unit: int | None) -> None:
    def unit_now() -> int:
        known = unit if unit is not None else export.typical_unit_of(chosen, layer)
        return known or 0

    def percentiles(write: export.Writer) -> bytes:
        table = export.percentiles_table(chosen, layer, unit_now())
        return write(table, export.origin(chosen))

    def accuracy(write: export.Writer) -> bytes:
        return write(export.accuracy_table(chosen), export.origin(chosen))

    def html() -> bytes:
        shown = unit_now()
        return export.to_html(
            figures.figure1(export.run_data(chosen, layer, shown), layer, f"unit {shown}")
        )

    name = f"{layer}-{'typical' if unit is None else f'unit{unit}'}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Download", width="content")
        for label, what, data, file in (
            (
                "Percentiles CSV",
                "csv",
                lambda: percentiles(export.to_csv),
                f"percentiles-{name}.csv",
            ),
            (
                "Percentiles Parquet",
                "parquet",
                lambda: percentiles(export.to_parquet),
                f"percentiles-{name}.parquet",
            ),
            ("Accuracy CSV", "csv", lambda: accuracy(export.to_csv), "accuracy.csv"),
            (
                "Accuracy Parquet",
                "parquet",
                lambda: accuracy(export.to_parquet),
                "accuracy.parquet",
            ),
            ("Interactive HTML", "html", html, f"figure1-{name}.html"),
        ):
            st.download_button(
                label,
                data=data,
                file_name=file,
                mime={"csv": "text/csv", "html": "text/html"}.get(
                    what, "application/vnd.apache.parquet"
                ),
                on_click="ignore",
                key=f"download-{file}",
            )
