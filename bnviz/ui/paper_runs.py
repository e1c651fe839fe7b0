"""The runs behind a figure of the paper: which are there, and one button for what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import streamlit as st

from bnviz import jobs, store
from bnviz.config import RunConfig
from bnviz.presets import Preset
from bnviz.processes import true_status
from bnviz.status import ACTIVE, AT_END, RESUMABLE, State
from bnviz.store import Run, StoreError
from bnviz.ui import groups, runs
from bnviz.ui.text import literal

Found = dict[str, dict[int, Run]]
"""The newest run of each configuration, one that has ended before others: by its name in the
preset, then by how far its seed is from the preset's."""


def find(preset: Preset) -> Found:
    """Runs with the configurations of a preset, in any seed."""
    names = {_without_seed(config): name for name, config in preset.runs.items()}
    kind = hash(tuple(names))
    found: Found = {name: {} for name in preset.runs}
    root = store.default_root().absolute()
    for run_id in store.list_run_ids(root):  # the newest first
        key = kind, str(root / run_id)
        try:
            if key not in _names:
                _names[key] = names.get(_without_seed(store.open_run(root / run_id).config))
            if (name := _names[key]) is not None:
                run = runs.find(run_id)
                seed = run.config.training.seed - preset.runs[name].training.seed
                own = found[name].setdefault(seed, run)
                if _rank(run) > _rank(own):
                    found[name][seed] = run
        except StoreError:
            continue  # the page Runs names it
    return found


def _rank(run: Run) -> int:
    """One that has come to its end is preferred, then one that may."""
    state = true_status(run).state
    return 2 if state in AT_END else int(state in ACTIVE)


_names: dict[tuple[int, str], str | None] = {}
"""Which of some configurations a run has, by the configurations and its directory, as that never
changes: a page is drawn often, and reading thousands of configurations takes seconds."""


def _without_seed(config: RunConfig) -> RunConfig:
    training = config.training.model_copy(update={"seed": 0})
    return config.model_copy(update={"training": training})


class Missing(NamedTuple):
    """What a figure still needs: runs to start, by name, and runs to resume."""

    start: dict[str, RunConfig]
    resume: list[Run]

    def __len__(self) -> int:
        return len(self.start) + len(self.resume)


def missing(preset: Preset, found: Found, seeds: int) -> Missing:
    """What is not there, or has stopped before its end, in the first seeds."""
    start: dict[str, RunConfig] = {}
    resume = []
    for seed in range(seeds):
        for name, config in preset.runs.items():
            run = found[name].get(seed)
            if run is None:
                own = config.training.seed + seed
                suffix = f"-seed{own}" if seeds > 1 else ""
                start[f"{preset.name}-{name}{suffix}"] = config.replace({"training.seed": own})
            elif true_status(run).state in RESUMABLE:
                resume.append(run)
    return Missing(start, resume)


def button(preset: Preset, found: Found, seeds: int, first: str, minutes: str) -> None:
    """The button that runs what is missing; nothing where nothing is.

    Args:
        first: what it says where there is nothing yet.
        minutes: how long that takes, in words.
    """
    needed = missing(preset, found, seeds)
    if not len(needed):
        return
    nothing = not any(found.values())
    count = f"{len(needed)} runs" if len(needed) > 1 else "1 run"
    if nothing:
        st.info(f"It is not trained here yet. {minutes}")
    st.button(
        first if nothing else f"Run what is missing ({count})",
        type="primary",
        icon=":material/play_arrow:",
        key=f"start_{preset.name}",
        on_click=_run,
        args=(preset, needed),
    )
    if not nothing and needed.resume:
        st.caption(f"{len(needed.resume)} of them stopped before the end, and will go on.")


def _run(preset: Preset, needed: Missing) -> None:
    for run in needed.resume:
        try:
            jobs.resume(run)
        except StoreError as error:
            st.session_state["problem"] = str(error)
    if needed.start:
        runs.start(needed.start, jobs.new_group(preset.name))


def progress(chosen: Mapping[str, Run], key: str) -> None:
    """How far all of them are, and a row for each that trains now.

    Args:
        chosen: by what they are called.
    """
    if not chosen:
        return
    groups.progress(list(chosen.values()), key)
    going = {name: run for name, run in chosen.items() if true_status(run).state is State.RUNNING}
    runs.progress_rows(list(going.values()), list(going))


def stopped(chosen: Iterable[Run]) -> None:
    """Say which runs have failed."""
    for run in chosen:
        status = true_status(run)
        if status.state in (State.FAILED, State.LOST):
            why = status.error.message if status.error else "its process is gone"
            st.warning(f"{literal(run.run_id)}: {literal(why)}")
