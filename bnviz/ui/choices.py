"""What a page shows: runs, layer, unit. The address holds every choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from bnviz.settings import OVER_BATCH
from bnviz.store import Run, StoreError
from bnviz.ui import runs
from bnviz.ui.text import literal

TYPICAL = "typical"


def choose_runs(run_ids: list[str]) -> list[Run]:
    """The runs to show. A reload or another tab shows the same."""
    if "runs" not in st.session_state:  # the first time, or back from another page
        wanted = st.query_params.get_all("run")
        for run_id in set(wanted) - set(run_ids):
            st.warning(f"The address names a run that is not here: {literal(run_id[:80])}")
        st.session_state["runs"] = wanted or runs.shown() or runs.latest(run_ids)
    st.session_state["runs"] = [r for r in st.session_state["runs"] if r in run_ids]
    selected = st.multiselect(
        "Runs shown",
        run_ids,
        key="runs",
        format_func=name,
        placeholder="Choose runs",
        help="Newest first. All are in the accuracy panel; percentile panels are drawn for four, "
        "those without BN first.",
    )
    st.session_state["shown"] = selected  # the widget's own state is lost on another page
    if st.query_params.get_all("run") != selected:
        st.query_params["run"] = selected
    found = [run for run_id in selected if (run := runs.readable(run_id))]
    return sorted(found, key=lambda run: (run.config.model.normalization != "none", run.run_id))


def choose_run(run_ids: list[str], with_bn: bool = False) -> Run | None:
    """The run that a page about one run shows; None where it cannot be read, which is said.

    Args:
        with_bn: at first, one that normalizes by the statistics of a batch, where there is one
            among those shown last or started last.
    """
    shown = [run_id for run_id in runs.shown() if run_id in run_ids] or runs.latest(run_ids)
    default = next(filter(_has_bn, shown), shown[0]) if with_bn else shown[0]
    return runs.readable(select("Run", run_ids, "of", default, name))


def _has_bn(run_id: str) -> bool:
    try:
        return runs.find(run_id).config.model.normalization in OVER_BATCH
    except StoreError:  # it is named where it is chosen
        return False


def name(run_id: str) -> str:
    """A run in a list to choose from."""
    day, clock, name = run_id[4:8], run_id[9:15], run_id[16:]
    return f"{day[:2]}-{day[2:]} {clock[:2]}:{clock[2:4]} {name}"


def select(
    label: str,
    options: Sequence[str],
    key: str,
    default: str,
    format_func: Callable[[str], Any] = str,
    **look: Any,
) -> str:
    """A selectbox whose choice is in the address by its value, whatever `format_func` shows."""
    if st.session_state.get(key) not in options:
        wanted = st.query_params.get(key, "")
        st.session_state[key] = wanted if wanted in options else default
    chosen = st.selectbox(label, options, key=key, format_func=format_func, **look)
    if st.query_params.get(key) != chosen:
        st.query_params[key] = chosen
    return chosen


def layer_and_unit(chosen: Sequence[Run]) -> tuple[str, int | None]:
    """Which layer and unit of these runs to show (unit None: the typical one); no layer, "", where
    they have none in common."""
    layers = {name: units for run in reversed(chosen) for name, units in run.layers.items()}
    shared = [name for name in layers if all(name in run.layers for run in chosen)]
    layer = st.selectbox(
        "Layer",
        shared,
        index=len(shared) - 1 if shared else None,
        key="layer",
        bind="query-params",
        width=160,
        help="From the input on; of a convolution, a unit is a feature map. The paper shows a unit "
        "of the last hidden layer (Figure 1).",
    )
    if not layer:
        return "", None
    units = min(run.layers[layer] for run in chosen)
    choice = st.selectbox(
        "Unit",
        [TYPICAL, *map(str, range(units))],
        key="unit",
        bind="query-params",
        width=160,
        help="typical: its spread at step 0 is the median of the layer. The paper shows “one "
        "typical sigmoid” and does not say which (Section 4.1).",
    )
    return layer, None if choice == TYPICAL else int(choice)
