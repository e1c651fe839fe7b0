"""The page Sweeps: a grid of settings started as one group, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from bnviz import grids, jobs, store, sweeps
from bnviz.about import read_about
from bnviz.config import ConfigError, RunConfig, allowed
from bnviz.plots import Plot, Views
from bnviz.presets import Preset, presets
from bnviz.processes import true_status
from bnviz.status import ACTIVE, State
from bnviz.store import Run, StoreError
from bnviz.style import Drawn
from bnviz.sweeps import Result
from bnviz.ui import chart, choices, frame, groups, runs
from bnviz.ui.exports import Table, exports
from bnviz.ui.text import literal


def page() -> None:
    frame.title("Sweeps")
    found = _groups(store.default_root())
    with st.expander("Start a sweep", expanded=not found, icon=":material/grid_on:"):
        _set_up()
    if not found:
        st.info(
            "There are no sweeps yet. Choose one above and start it; the curve grows here while "
            "its runs train."
        )
        return
    if new := st.session_state.pop("new_group", None):
        st.session_state["group"] = new
    group = choices.select("Sweep", list(found), "group", next(iter(found)))
    _watch(found[group])


def _groups(root: Path) -> dict[str, list[Run]]:
    """Runs by their group, the newest group first."""
    found: dict[str, list[Run]] = {}
    for run_id in store.list_run_ids(root):
        try:
            run = runs.find(run_id)
            if group := read_about(run).group:
                assert run.config
                found.setdefault(group, []).append(run)
        except StoreError:
            continue  # the page Runs names it
    return found


# Setting up -------------------------------------------------------------------------------------


def _set_up() -> None:
    available = {name: preset for name, preset in presets().items() if preset.sweep}
    name = st.selectbox(
        "Preset",
        list(available),
        index=list(available).index("lr-sweep"),
        key="sweep_preset",
        bind="query-params",
    )
    preset = available[name]
    st.caption(f"**{literal(preset.title)}.** {literal(preset.why)}")
    base = next(iter(preset.runs.values()))
    paths = st.multiselect(
        "Settings to sweep",
        list(base.flat()),
        default=list(preset.sweep),
        key=f"sweep_paths_{name}",
        bind="query-params",
        help="Each gets its values below; a run is started for every combination.",
    )
    values: dict[str, list[Any]] = {}
    problems: list[str] = []
    for path in paths:
        typed = st.text_input(
            path,
            _as_text(preset, path),
            key=f"sweep_{name}_{path}",
            bind="query-params",
            help=f"Allowed: {allowed(path)}.",
        )
        try:
            values[path] = grids.parse_values(typed or "")
        except ValueError as error:
            problems.append(f"{path}: {error}")
    steps = st.number_input(
        "Steps of each run",
        value=base.training.steps,
        step=1000,
        key=f"sweep_steps_{name}",
        bind="query-params",
    )
    configs: dict[str, RunConfig] = {}
    if not problems:
        try:
            configs = expand(base, values, {"training.steps": steps})
        except (ValueError, ConfigError) as error:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
    if not paths:
        problems.append("choose at least one setting to sweep")
    for problem in problems[:5]:
        st.error(literal(problem), icon=":material/block:")
    st.button(
        f"Start {len(configs)} runs" if configs else "Start",
        type="primary",
        icon=":material/play_arrow:",
        disabled=bool(problems),
        key="start_sweep",
        on_click=_start,
        args=(name, configs),
    )


def expand(
    base: RunConfig, values: Mapping[str, list[Any]], others: Mapping[str, Any]
) -> dict[str, RunConfig]:
    """A configuration for every combination of values, by the name of its run.

    Raises:
        ValueError: no grid (see `bnviz.grids`).
        ConfigError: a value out of range, or values that do not fit together.
    """
    configs, problems = {}, []
    for settings in grids.combinations(values):
        try:
            configs[grids.run_name(settings)] = base.replace({**others, **settings})
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
    return configs


def _as_text(preset: Preset, path: str) -> str:
    found = {repr(c.flat()[path]): c.flat()[path] for c in preset.runs.values()}
    return ", ".join(
        str(list(value)) if isinstance(value, list | tuple) else str(value)
        for value in found.values()
    )


def _start(name: str, configs: dict[str, RunConfig]) -> None:
    group = jobs.new_group(name)
    runs.start({f"{name}-{run_name}": config for run_name, config in configs.items()}, group)
    st.session_state["new_group"] = group


# Watching ---------------------------------------------------------------------------------------


def _result(run: Run) -> Result:
    status = true_status(run)
    return Result(
        run.run_id,
        run.config.flat(),
        status.test_accuracy,
        status.state is State.DIVERGED,
        status.state not in ACTIVE,
    )


def _watch(chosen: list[Run]) -> None:
    values = sweeps.swept(_results(chosen))
    axes = [path for path in values if path != "training.seed"]
    if not axes:
        frame.watch(groups.progress, chosen, chosen, "sweep")
        st.info("These runs differ in their seed alone; compare them on the page Compare.")
        return
    numbers = [path for path in axes if all(type(v) in (int, float) for v in values[path])]
    against = choices.select(
        "Against",
        axes,
        "against",
        (numbers or axes)[0],
        lambda path: path.rpartition(".")[2].replace("_", " "),
        width=260,
    )
    frame.watch(_draw, chosen, chosen, against)
    table = {"Results": Table("sweep", lambda: sweeps.table(_results(chosen)))}
    exports("sweep_chart", chosen, "sweep", _figure(chosen, against), table)


def _results(chosen: list[Run]) -> list[Result]:
    return [_result(run) for run in reversed(chosen)]


def _figure(chosen: list[Run], against: str) -> chart.Build:
    def build(views: Views) -> Plot:
        results = _results(chosen)
        figure = sweeps.figure(results, against)
        return Plot(Drawn(figure), sweeps.describe(results))

    return build


def _draw(chosen: list[Run], against: str) -> None:
    groups.progress(chosen, "sweep")
    results = _results(chosen)
    build, version = _figure(chosen, against), (*map(str, results), against)
    chart.live("sweep_chart", version, build, chosen, "sweep")
    st.caption(
        literal(
            "The latest test accuracy of each run, the mean over seeds; bars go from the least to "
            "the greatest. " + sweeps.describe(results)
        )
    )
    st.dataframe(
        sweeps.table(results).sort_values("accuracy", ascending=False),
        hide_index=True,
        key="sweep_table",
        placeholder="–",
        column_config={
            name: st.column_config.NumberColumn(format="%.4f")
            for name in ("accuracy", "least", "greatest")
        },
    )
