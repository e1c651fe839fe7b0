"""The page Runs: all runs in a table, and what can be done with some of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from bnviz import jobs, store, unbundle
from bnviz.about import change_about, read_about
from bnviz.config import ConfigError
from bnviz.index import Index
from bnviz.processes import has_process, true_status
from bnviz.status import ACTIVE, RESUMABLE, UNFINISHED, State
from bnviz.store import Run, StoreError
from bnviz.ui import controls, frame, runs
from bnviz.ui.exports import packed
from bnviz.ui.text import literal

TICK_S = 2.0

COLUMNS = {
    "state": st.column_config.TextColumn("State", width=100),
    "name": st.column_config.TextColumn("Name", width="medium"),
    "settings": st.column_config.TextColumn(
        "Settings", width="large", help="What differs from the defaults, the paper's MNIST network."
    ),
    "progress": st.column_config.ProgressColumn("Progress", format="percent", width=110),
    "step": st.column_config.NumberColumn("Step", format="localized", width=80),
    "test_accuracy": st.column_config.NumberColumn("Test accuracy", format="%.4f", width=100),
    "best_test_accuracy": st.column_config.NumberColumn("Best", format="%.4f", width=80),
    "test_loss": st.column_config.NumberColumn("Test loss", format="%.4f", width=80),
    "train_loss": st.column_config.NumberColumn("Train loss", format="%.4f", width=80),
    "steps_per_s": st.column_config.NumberColumn("Steps/s", format="%d", width=80),
    "device": st.column_config.TextColumn("Device", width=80),
    "submitted": st.column_config.DatetimeColumn("Age", format="distance", width=120),
    "duration_s": st.column_config.NumberColumn("Seconds", format="%.0f", width=80),
    "group": st.column_config.TextColumn("Group", width="small"),
    "tags": st.column_config.ListColumn("Tags", width="small"),
    "note": st.column_config.TextColumn("Note", width="medium"),
    "run_id": st.column_config.TextColumn("Id", width="medium"),
}
SHOWN_AT_FIRST = (
    "state",
    "name",
    "settings",
    "progress",
    "test_accuracy",
    "test_loss",
    "steps_per_s",
    "submitted",
    "tags",
)


LABELS = {str(column.get("label")): name for name, column in COLUMNS.items()}


def page() -> None:
    frame.title("Runs")
    root = store.default_root()
    _import(root)
    if not store.list_run_ids(root):
        st.info("There are no runs yet. Start some on the page Lab; they appear here.")
        return
    search, states, archived, columns = _filters()
    tick = TICK_S if frame.is_live() else None
    st.fragment(_table, run_every=tick)(root, search, states, archived, columns)


def _import(root: Path) -> None:
    """Runs from another machine."""
    if imported := st.session_state.pop("imported", None):
        st.success(f"Imported {len(imported)} runs: {', '.join(imported)}.")
    with st.popover("Import", icon=":material/upload:", key="import_popover"):
        file = st.file_uploader(
            "A zip file of runs, from the button “Download as zip” or `python -m bnviz pack`",
            type="zip",
            key=f"import_{st.session_state.get('imports', 0)}",
        )
        if file is None or not st.button("Import it", key="import", type="primary"):
            return
        try:
            st.session_state["imported"] = unbundle.unpack(file, root)
        except StoreError as error:
            st.error(literal(str(error)), icon=":material/block:")
            return
    st.session_state["imports"] = st.session_state.get("imports", 0) + 1  # an empty uploader
    st.rerun()


def _filters() -> tuple[str, list[str], bool, list[str]]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        search = st.text_input(
            "Search",
            key="search",
            bind="query-params",
            placeholder="words in name, settings, tags, note, group or id",
            help="Runs that have all of these words.",
        )
        states = st.multiselect(
            "States",
            [state.value.lower() for state in State],
            key="states",
            bind="query-params",
            placeholder="all",
        )
        columns = st.multiselect(
            "Columns",
            list(LABELS),
            default=[label for label, name in LABELS.items() if name in SHOWN_AT_FIRST],
            key="columns",
            bind="query-params",
        )
        archived = st.toggle("Archived ones, too", key="archived", bind="query-params")
    return search or "", states, archived, [LABELS[label] for label in columns]


@st.cache_resource(max_entries=4, show_spinner=False)
def _index(root: str) -> Index:
    return Index(Path(root))


def matching(table: pd.DataFrame, search: str, states: Sequence[str], archived: bool) -> pd.Series:
    """Which rows of the index have all words of the search and one of the states (all for none)."""
    keep = pd.Series(True, index=table.index)
    if words := search.lower().split():
        text = table["tags"].map(" ".join)
        for column in ("name", "settings", "note", "group", "run_id"):
            text = text + " " + table[column].astype(str)
        text = text.str.lower()
        for word in words:
            keep &= text.str.contains(word, regex=False)
    if states:
        keep &= table["state"].str.lower().isin(states)
    return keep if archived else keep & ~table["archived"]


def _table(root: Path, search: str, states: list[str], archived: bool, columns: list[str]) -> None:
    if st.session_state.pop("refresh", False):
        st.rerun()  # an action has changed more than this table
    everything = _index(str(root.absolute())).table()
    if everything.empty:
        st.info("All runs are gone. Start some on the page Lab; they appear here.")
        return
    table = everything[matching(everything, search, states, archived)].set_index("run_id")
    order, withheld, key = _order(list(table.index), (search, tuple(states), archived))
    table = table.reindex(order)
    chosen = [i for i in _selected(key) if i in table.index]
    _actions(chosen)
    active = int(everything["state"].isin([s.value for s in ACTIVE]).sum())
    text = f"{len(table):,} of {len(everything):,} runs, {active} active."
    if chosen:
        text += f" {len(chosen)} selected."
    if withheld:
        text += f" {withheld} new: clear the selection to see them."
    st.caption(text)
    view = table.reset_index()[columns] if columns else table.reset_index()[["name"]]
    if "state" in view:
        view = view.assign(state=view["state"].str.lower())
    st.dataframe(
        view,
        key=key,
        on_select="rerun",
        selection_mode="multi-row",
        hide_index=True,
        column_config=COLUMNS,
        height=min(700, 40 + 35 * max(len(view), 1)),
        placeholder="–",
    )


def _order(run_ids: list[str], filters: object) -> tuple[list[str], int, str]:
    """The runs in the order of their rows, how many new ones are held back, and the table's key.

    A selection is of row numbers. So while there is one, no row may move: new runs wait, and where
    a row is gone, the table begins anew without a selection.
    """
    state = st.session_state.setdefault("table", {"order": [], "filters": None, "number": 0})
    key = f"table-{state['number']}"
    if _selected(key) and run_ids != state["order"]:
        if filters == state["filters"] and set(state["order"]) <= set(run_ids):
            return state["order"], len(run_ids) - len(state["order"]), key
        state["number"] += 1
    state["order"], state["filters"] = run_ids, filters
    return run_ids, 0, f"table-{state['number']}"


def _selected(key: str) -> list[str]:
    rows = st.session_state.get(key, {}).get("selection", {}).get("rows", [])
    order = st.session_state["table"]["order"]
    return [order[row] for row in rows if row < len(order)]


# Actions ----------------------------------------------------------------------------------------


def _actions(chosen: list[str]) -> None:
    """Buttons for the selected runs, each enabled where it can do something."""
    found = []
    for run_id in chosen:
        try:
            found.append(runs.find(run_id))
        except StoreError:
            continue  # gone at this very moment
    statuses = {run.run_id: true_status(run) for run in found}
    able = {
        "Pause": [r for r in found if statuses[r.run_id].state in ACTIVE],
        "Resume": [r for r in found if statuses[r.run_id].state in RESUMABLE],
        "Cancel": [r for r in found if statuses[r.run_id].state in UNFINISHED],
        "Delete": [r for r in found if not has_process(statuses[r.run_id])],
    }
    with st.container(horizontal=True, key="actions"):
        if st.button(
            "Compare",
            key="compare",
            icon=":material/stacked_line_chart:",
            disabled=not found,
            type="primary",
        ):
            runs.show(chosen)
            st.switch_page(st.session_state["pages"]["compare"], query_params={"run": chosen})
        _button("Pause", "pause", able["Pause"], jobs.pause)
        _button("Resume", "play_arrow", able["Resume"], jobs.resume)
        _button("Cancel", "stop", able["Cancel"], jobs.cancel)
        _button("Start again", "replay", found, jobs.retry)
        archived = [run for run in found if read_about(run).archived]
        if archived:
            _button("Unarchive", "unarchive", archived, lambda run: _archive(run, False))
        else:
            _button("Archive", "archive", found, lambda run: _archive(run, True))
        _button("Delete", "delete", able["Delete"], jobs.delete)
        st.download_button(
            "Download as zip",
            lambda: packed(found),
            "bnviz-runs.zip",
            "application/zip",
            on_click="ignore",
            icon=":material/folder_zip:",
            disabled=not found,
            key="zip",
            help="Configuration, tables, checkpoint and log of each run, the command that "
            "reproduces it, and figures. Import opens it on another machine.",
        )
        with st.popover("Name, tags, note", disabled=not found, key="describe"):
            _describe(found)
        if st.button(
            "Copy settings to the Lab",
            key="copy_to_lab",
            icon=":material/content_copy:",
            disabled=len(found) != 1,
        ):
            controls.load(found[0].config)
            st.switch_page(st.session_state["pages"]["lab"])


def _button(label: str, icon: str, able: Sequence[Run], action: Callable[[Run], object]) -> None:
    st.button(
        label,
        key=f"all-{label.lower().replace(' ', '-')}",
        icon=f":material/{icon}:",
        disabled=not able,
        on_click=_for_each,
        args=(label, action, able),
    )


def _for_each(label: str, action: Callable[[Run], object], able: Sequence[Run]) -> None:
    """Do it to each; what cannot be done to some is said, and does not keep it from the others."""
    problems, done = [], []
    for run in able:
        try:
            action(run)
            done.append(run.run_id)
        except (StoreError, ConfigError) as error:
            problems.append(str(error))
    if action is jobs.delete:
        st.session_state["deleted"] = done
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        st.session_state["problem"] = problems[0] + more
    st.session_state["refresh"] = True


def _archive(run: Run, archived: bool) -> None:
    change_about(run, archived=archived)


def _describe(found: Sequence[Run]) -> None:
    if not found:
        return
    abouts = [read_about(run) for run in found]
    single = len(found) == 1
    with st.form("describe_form", border=False, enter_to_submit=False):
        if single:
            name = st.text_input("Name", value=abouts[0].name, placeholder=found[0].run_id[16:])
        common = [tag for tag in abouts[0].tags if all(tag in about.tags for about in abouts)]
        tags = st.multiselect(
            "Tags" if single else "Tags that all of them have",
            sorted({tag for about in abouts for tag in about.tags}),
            default=common,
            accept_new_options=True,
            placeholder="type a word and press Enter",
        )
        if single:
            note = st.text_area("Note", value=abouts[0].note)
        if not st.form_submit_button("Save", type="primary"):
            return
    try:
        for run, about in zip(found, abouts, strict=True):
            kept = [tag for tag in about.tags if tag not in common and tag not in tags]
            changes = {"name": name, "note": note} if single else {}
            change_about(run, tags=[*kept, *tags], **changes)
    except StoreError as error:
        st.error(literal(str(error)))
        return
    st.rerun()
