"""The sidebar of the Lab: what to train. Every choice but a folder is held in the address."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from bnviz import grids, sources
from bnviz.config import ConfigError, RunConfig
from bnviz.presets import Preset, presets
from bnviz.ui import settings_form
from bnviz.ui.data_sets import offer_download
from bnviz.ui.settings_form import CONTROLS, explanation, widget
from bnviz.ui.text import literal

BOTH, WITH, WITHOUT = "Both", "With", "Without"

LEARNING_RATES = [float(f"{m}e{e}") for e in range(-4, 2) for m in (1, 1.5, 2, 3, 5, 7)] + [100.0]
"""Stops of the slider, about evenly spaced on a log scale; the field beside it takes any value."""

UNFOLDED = {
    "Network": ("model.",),
    "Normalization": ("model.normalization", "model.bn_", "model.groups"),
    "Optimizer": ("optimizer.",),
    "Data": ("data.",),
    "Recording": ("trace.", "training."),
}
"""Parts of the sidebar that unfold, with the beginnings of the settings in them. A setting stands
where the most of its path is named."""

ALWAYS = (
    "optimizer.learning_rate",
    "model.nonlinearity",
    "training.batch_size",
    "training.steps",
    "training.seed",
    "data.input",
)
"""Settings that stand above these parts."""


@dataclass(frozen=True)
class Setup:
    """What the sidebar asks for: runs by name, or why they cannot be started."""

    preset: Preset
    runs: dict[str, RunConfig]
    problems: list[str]


def sidebar(start: Callable[[], None]) -> Setup:
    """Draw the controls; `start` is called when Start is pressed."""
    available = presets()
    st.header("Set up", anchor=False)
    name = st.selectbox(
        "Preset",
        list(available),
        index=list(available).index("figure1"),
        key="preset",
        bind="query-params",
        on_change=_load_preset,
        help="An experiment with its settings. Changing any control below makes it your own.",
    )
    preset = available[name]
    st.caption(literal(preset.title))
    defaults = _first(preset).flat()
    fixed = preset.varied
    st.segmented_control(
        "Batch normalization",
        [BOTH, WITHOUT, WITH],
        default=BOTH,
        key="bn",
        bind="query-params",
        required=True,
        help="Both starts the runs without and with it, from the same weights on the same batches "
        "(Section 3.2). What With is, “Normalization” below says.",
    )
    _learning_rate(defaults["optimizer.learning_rate"], "optimizer.learning_rate" in fixed)
    widget("model.nonlinearity", defaults["model.nonlinearity"], fixed)
    columns = st.columns(2)
    for i, path in enumerate(ALWAYS[2:]):
        with columns[i % 2]:
            widget(path, defaults[path], fixed)
    for part, paths in _parts().items():
        with st.expander(part):
            for path in paths:
                widget(path, defaults[path], fixed)
    setup = read()
    for data in {config.data for config in setup.runs.values()}:
        offer_download(data)
    for problem in setup.problems:
        st.error(literal(problem), icon=":material/block:")
    if fixed:
        names = ", ".join(CONTROLS[path].label.lower() for path in fixed)
        st.caption(f"The runs of this preset differ in: {literal(names)}.")
    # Where something is wrong there are none, and the button says what it would start.
    count = len(setup.runs) or (2 if st.session_state["bn"] == BOTH else 1)
    st.button(
        f"Start {count} runs" if count > 1 else "Start",
        type="primary",
        width="stretch",
        icon=":material/play_arrow:",
        disabled=bool(setup.problems),
        on_click=start,
        key="start",
    )
    return setup


def _parts() -> dict[str, list[str]]:
    """The settings of each part that unfolds."""
    parts: dict[str, list[str]] = {part: [] for part in UNFOLDED}
    for path in CONTROLS:
        if path not in ALWAYS:
            named = {
                part: max((len(b) for b in beginnings if path.startswith(b)), default=0)
                for part, beginnings in UNFOLDED.items()
            }
            parts[max(named, key=named.__getitem__)].append(path)
    return parts


def _learning_rate(default: float, disabled: bool) -> None:
    """A log slider and a field for any value, each following the other."""
    st.session_state.setdefault("lr_slider", _nearest(st.session_state.get("lr", default)))

    def from_slider() -> None:
        st.session_state["lr"] = st.session_state["lr_slider"]

    def from_field() -> None:
        st.session_state["lr_slider"] = _nearest(st.session_state["lr"])

    st.number_input(
        "Learning rate",
        value=default,
        step=None,
        format="%g",
        key="lr",
        bind="query-params",
        on_change=from_field,
        disabled=disabled,
        help=explanation("optimizer.learning_rate"),
    )
    st.session_state["lr_slider"] = _nearest(st.session_state["lr"])
    st.select_slider(
        "Learning rate, log scale",
        LEARNING_RATES,
        key="lr_slider",
        format_func=lambda value: f"{value:g}",
        on_change=from_slider,
        disabled=disabled,
        label_visibility="collapsed",
    )


def _nearest(value: float | None) -> float:
    if value is None or not math.isfinite(value) or value <= 0:
        return LEARNING_RATES[0]
    return min(LEARNING_RATES, key=lambda stop: abs(math.log(stop / value)))


def _first(preset: Preset) -> RunConfig:
    """The run whose settings the controls show: one with normalization, where there is one."""
    configs = list(preset.runs.values())
    return next((c for c in configs if c.model.normalization != "none"), configs[0])


def _load_preset() -> None:
    """Set the controls to what the preset just chosen has."""
    settings_form.set_values(_first(presets()[st.session_state["preset"]]).flat().__getitem__)
    st.session_state["bn"] = BOTH


def load(config: RunConfig) -> None:
    """Set the controls to a run's configuration; in a callback.

    The preset becomes figure1, whose runs differ in their normalization alone.
    """
    st.session_state["preset"] = "figure1"
    settings_form.set_values(config.flat().__getitem__)
    st.session_state["bn"] = WITHOUT if config.model.normalization == "none" else WITH


def read() -> Setup:
    """What the controls say now. In a callback, too: a value typed just before a click counts."""
    state = st.session_state
    preset = presets()[state["preset"]]
    settings = {
        path: settings_form.value_of(path)
        for path in CONTROLS
        if path not in preset.varied and path != "model.normalization"
    }
    kind = settings_form.value_of("model.normalization")
    runs, problems = {}, []
    for run_name, config in preset.runs.items():
        own = config.model.normalization
        if (own == "none" and state["bn"] == WITH) or (own != "none" and state["bn"] == WITHOUT):
            continue
        if own == "batch" and "model.normalization" not in preset.varied:
            own = kind
            run_name = run_name.replace("with-bn", grids.run_name({"model.normalization": own}))
        settings["model.normalization"] = own
        if own not in ("none", "batch"):  # the others have no such form
            settings["model.bn_per"] = "feature_map"
        try:
            runs[f"{preset.name}-{run_name}"] = config.replace(settings)
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if not runs and not problems:
        which = "with" if state["bn"] == WITH else "without"
        problems = [f"The preset {preset.name} has no runs {which} normalization; choose Both."]
    for data in {config.data for config in runs.values()}:
        # Folders take time to look through, which is done at the start.
        if data.dataset not in settings_form.FOLDERS:
            problems += sources.data_problems(data)
        elif problem := sources.no_folder_problem(data):
            problems.append(problem)
    return Setup(preset, runs, problems)
