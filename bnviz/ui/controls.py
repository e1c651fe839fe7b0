"""The sidebar of the Lab: what to train. Every choice is held in the URL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import streamlit as st

from bnviz.config import ConfigError, RunConfig, field_info
from bnviz.presets import Preset, presets
from bnviz.ui.text import literal

BOTH, WITH, WITHOUT = "Both", "With", "Without"

LEARNING_RATES = [float(f"{m}e{e}") for e in range(-4, 2) for m in (1, 1.5, 2, 3, 5, 7)] + [100.0]
"""Stops of the slider, about evenly spaced on a log scale; the field beside it takes any value."""


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
        help="An experiment with its settings. Changing any control below makes it your own.",
    )
    preset = available[name]
    st.caption(literal(preset.title))
    defaults = next(iter(preset.runs.values()))
    st.segmented_control(
        "Batch normalization",
        [BOTH, WITHOUT, WITH],
        default=BOTH,
        key="bn",
        bind="query-params",
        required=True,
        help="Both starts two runs from the same weights on the same batches (Section 3.2).",
    )
    _choice("model.nonlinearity", "nonlinearity", "Nonlinearity", defaults.model.nonlinearity)
    _learning_rate(defaults.optimizer.learning_rate)
    _choice("model.initialization", "init", "Initial weights", defaults.model.initialization)
    _number(
        "model.init_std",
        "init_std",
        "Initial weights' std",
        defaults.model.init_std,
        disabled=st.session_state["init"] != "gaussian",
    )
    left, right = st.columns(2)
    with left:
        _number("training.batch_size", "batch", "Batch size", defaults.training.batch_size)
        _number("training.seed", "seed", "Seed", defaults.training.seed)
    with right:
        _number("training.steps", "steps", "Steps", defaults.training.steps)
        _choice("data.input", "pixels", "Pixels", defaults.data.input)
    setup = read()
    for problem in setup.problems:
        st.error(literal(problem), icon=":material/block:")
    if preset.sweep:
        names = ", ".join(p.rpartition(".")[2].replace("_", " ") for p in preset.sweep)
        st.caption(f"This preset sweeps: {literal(names)}.")
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


def _learning_rate(default: float) -> None:
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
        help=explanation("optimizer.learning_rate"),
    )
    st.session_state["lr_slider"] = _nearest(st.session_state["lr"])
    st.select_slider(
        "Learning rate, log scale",
        LEARNING_RATES,
        key="lr_slider",
        format_func=lambda value: f"{value:g}",
        on_change=from_slider,
        label_visibility="collapsed",
    )


def explanation(path: str) -> str:
    """What a setting is, with the paper's section."""
    description = field_info(path).description
    return f"{description[0].upper()}{description[1:]}."


def _nearest(value: float | None) -> float:
    if value is None or not math.isfinite(value) or value <= 0:
        return LEARNING_RATES[0]
    return min(LEARNING_RATES, key=lambda stop: abs(math.log(stop / value)))


def _choice(path: str, key: str, label: str, default: str) -> None:
    st.selectbox(
        label,
        options := get_args(field_info(path).annotation),
        index=options.index(default),
        key=key,
        bind="query-params",
        help=explanation(path),
    )


def _number(
    path: str, key: str, label: str, default: float | int, *, disabled: bool = False
) -> None:
    # No bounds here: a value out of range is answered with a sentence and not silently changed.
    st.number_input(
        label,
        value=default,
        format="%g" if isinstance(default, float) else "%d",
        step=None if isinstance(default, float) else 1,
        key=key,
        bind="query-params",
        disabled=disabled,
        help=explanation(path),
    )


CONTROLS = {
    "model.nonlinearity": "nonlinearity",
    "model.initialization": "init",
    "model.init_std": "init_std",
    "optimizer.learning_rate": "lr",
    "training.batch_size": "batch",
    "training.steps": "steps",
    "training.seed": "seed",
    "data.input": "pixels",
}
"""Setting to the key of its control."""


def load(config: RunConfig) -> list[str]:
    """Set the controls to a run's configuration; in a callback. Returns the settings that differ
    from the preset's and have no control."""
    values = config.flat()
    for path, key in CONTROLS.items():
        st.session_state[key] = values[path]
    st.session_state["bn"] = WITH if config.model.normalization == "batch" else WITHOUT
    st.session_state["lr_slider"] = _nearest(values["optimizer.learning_rate"])
    preset = presets()[st.session_state.get("preset", "figure1")]
    defaults = next(iter(preset.runs.values())).flat()
    controlled = {*CONTROLS, "model.normalization"}
    return [path for path in values if path not in controlled and values[path] != defaults[path]]


def read() -> Setup:
    """What the controls say now. In a callback, too: a value typed just before a click counts."""
    state = st.session_state
    preset = presets()[state["preset"]]
    # What a sweep varies is not for the controls.
    settings = {p: state[key] for p, key in CONTROLS.items() if p not in preset.sweep}
    wanted = {BOTH: ("none", "batch"), WITH: ("batch",), WITHOUT: ("none",)}[state["bn"]]
    runs, problems = {}, []
    for run_name, config in preset.runs.items():
        if config.model.normalization not in wanted:
            continue
        try:
            runs[f"{preset.name}-{run_name}"] = config.replace(settings)
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return Setup(preset, runs, problems)
