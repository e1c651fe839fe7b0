"""The page Lab: set up, start, watch the paper's Figure 1 grow, export it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from bnviz import captions, figures, jobs, plots, queue, store, tables
from bnviz.config import RunConfig
from bnviz.plots import Plot, Views
from bnviz.store import Run, StoreError
from bnviz.ui import chart, choices, controls, frame, runs
from bnviz.ui.exports import Table, exports
from bnviz.ui.text import literal

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
- **(a)** accuracy on all test images (of MNIST 10,000); BN uses its running statistics.
- **(b), (c), …** 15th, 50th and 85th percentile of one unit's *pre-activation* (the input of its
  nonlinearity, after the normalization where that stands before it), exact, over the examples named
  below the figure. In the default, BN normalizes by their own statistics, as the paper's training
  network does.
- **The typical unit** is the one whose spread (85th minus 15th percentile) at step 0 is the median
  of its layer, in the first run without BN where there is one. The rule looks at step 0 alone, so
  it is blind to the outcome; all panels show the same unit. Choose any other above.
- **The paper's curves** are digitised from its Figure 1. Its panels (b) and (c) have no numbers on
  their x axis; that it spans the 50,000 steps is an assumption. Which unit it shows is not stated.
"""


def page() -> None:
    with st.sidebar:
        setup = controls.sidebar(_start)
    frame.title("Internal covariate shift, live")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        _empty(setup)
        return
    chosen = choices.choose_runs(run_ids)
    if not chosen:
        st.info("Choose runs above to see them, or press Start to train new ones.")
        return
    layer, unit, with_paper = _view(chosen)
    if not layer:
        st.info("The runs chosen have no layer in common; choose others.")
        return
    frame.watch(_show_runs, chosen, chosen, layer, unit, with_paper)
    _export(chosen, layer, unit, with_paper)
    _housekeeping()
    with st.expander("How to read this"):
        st.markdown(READING)
    with st.expander(f"About the preset {setup.preset.name}"):
        st.markdown(f"**{literal(setup.preset.title)}**\n\n{literal(setup.preset.why)}")


def _housekeeping() -> None:
    """How many runs train at once, and the trash."""
    root = store.default_root()
    with st.expander("Queue and trash"):
        for kind, limit in queue.slots(root).items():
            key = f"slots-{kind}"
            st.session_state.setdefault(key, limit)
            st.number_input(
                f"Runs that train at once on the {'GPU' if kind == 'cuda' else 'CPU'}",
                1,
                queue.MAX_SLOTS,
                key=key,
                width=300,
                on_change=_set_slots,
                args=(kind,),
                help="The others wait in line. By default as many as there are CPU cores, and one "
                "on a GPU.",
            )
        trash = jobs.deleted(root)
        st.button(
            f"Empty the trash ({len(trash)})",
            key="empty_trash",
            icon=":material/delete_forever:",
            disabled=not trash,
            on_click=jobs.empty_trash,  # type: ignore[arg-type]
            args=(root,),
            help=f"Deleted runs are kept for {jobs.TRASH_DAYS} days.",
        )


def _set_slots(kind: str) -> None:
    try:
        queue.set_slots(store.default_root(), st.session_state[f"slots-{kind}"], kind)
    except StoreError as error:
        st.session_state["problem"] = str(error)


def _start() -> None:
    setup = controls.read()
    if setup.problems:
        return  # the page that is drawn next says them
    group = jobs.new_group(setup.preset.name) if len(setup.runs) > 2 else ""
    if started := runs.start(setup.runs, group):
        runs.show(started)


def _empty(setup: controls.Setup) -> None:
    preset = setup.preset
    own = f"**{literal(preset.title)}**\n\n{literal(preset.why)}"
    st.markdown(INTRODUCTION if preset.name == "figure1" else own)
    count = {1: "One run", 2: "Two runs"}.get(len(setup.runs), f"{len(setup.runs)} runs")
    what = "Figure 1" if setup.preset.name == "figure1" else count.lower()
    st.button(
        f"Start {what}",
        type="primary",
        icon=":material/play_arrow:",
        on_click=_start,
        disabled=bool(setup.problems),
        key="start_figure1",
    )
    configs = list(setup.runs.values())
    layer = next((list(config.traced_layers)[-1] for config in configs), "")
    with_paper = _like_the_papers(configs, layer)
    if configs:
        steps = max(config.training.steps for config in configs)
        st.caption(
            f"{count} of {steps:,} steps; two of 50,000 with the paper's network take a minute or "
            "two on two CPU cores. The first points come within seconds."
            + (" Below is what the paper measured." if with_paper else "")
        )
    data = [figures.not_started(config) for config in configs]

    def build(views: Views) -> Plot:
        drawn = figures.figure1(data, layer, "typical unit", with_paper=with_paper)
        words = "The paper's Figure 1, digitised." if with_paper else "Empty axes."
        return Plot(drawn, words)

    version = tuple(map(str, configs))
    chart.live("figure1", version, build, [], "figure1-paper", with_paper=with_paper)


def _view(chosen: list[Run]) -> tuple[str, int | None, bool]:
    """Layer, unit (None: the typical one), and whether the paper's curves are shown."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer, unit = choices.layer_and_unit(chosen)
        with_paper = st.toggle(
            "The paper's curves",
            key="paper",
            bind="query-params",
            help="Lay the digitised curves of the paper's Figure 1 over ours.",
        )
    return layer, unit, with_paper


def _figure(chosen: list[Run], layer: str, unit: int | None, with_paper: bool) -> chart.Build:
    return lambda views: plots.figure1(chosen, layer, unit, with_paper=with_paper, views=views)


def _filename(layer: str, unit: int | None) -> str:
    return f"{layer}-{'typical' if unit is None else f'unit{unit}'}"


def _show_runs(chosen: list[Run], layer: str, unit: int | None, with_paper: bool) -> None:
    """Progress and chart."""
    runs.progress_rows(chosen, captions.labels(chosen))
    shown = tables.unit_of(chosen, layer, unit)
    if unit is None and shown is not None:
        st.caption(
            f"Typical unit of {layer}: {shown}, whose spread at step 0 is the median of the layer."
        )
    version = (*(run.version() for run in chosen), layer, shown, with_paper)
    build = _figure(chosen, layer, unit, with_paper)
    name = f"figure1-{_filename(layer, shown)}"
    chart.live("figure1", version, build, chosen, name, with_paper=with_paper)
    st.caption(literal(captions.about(chosen)))
    if with_paper and (note := _paper_differs(chosen, layer)):
        st.caption(note)


def _paper_differs(chosen: list[Run], layer: str) -> str:
    if _like_the_papers([run.config for run in chosen], layer):
        return ""
    return (
        "The paper's curves are of a sigmoid unit in the last hidden layer of an MLP, on binary "
        "digits."
    )


def _like_the_papers(configs: Sequence[RunConfig], layer: str) -> bool:
    """Whether a layer of these runs is what panels (b) and (c) of the paper's figure show."""
    return all(
        config.model.kind == "mlp"
        and config.model.nonlinearity == "sigmoid"
        and (config.model.normalization == "none" or config.model.bn_placement == "before")
        and list(config.traced_layers)[-1] == layer
        and (config.data.dataset, config.data.input) == ("mnist", "binary")
        for config in configs
    )


def _export(chosen: list[Run], layer: str, unit: int | None, with_paper: bool) -> None:
    def percentiles() -> pd.DataFrame:
        shown = tables.unit_of(chosen, layer, unit)
        return tables.percentiles_table(chosen, layer, shown or 0)  # before any record: no rows

    data = {
        "Percentiles": Table(f"percentiles-{_filename(layer, unit)}", percentiles),
        "Accuracy": Table("accuracy", lambda: tables.accuracy_table(chosen)),
    }
    build = _figure(chosen, layer, unit, with_paper)
    name = f"figure1-{_filename(layer, unit)}"
    exports("figure1", chosen, name, build, data, with_paper=with_paper)
