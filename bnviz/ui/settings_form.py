"""A widget for each setting of a run, made from its definition in `bnviz.settings`."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from bnviz.config import RunConfig, field_info
from bnviz.grids import parse_values
from bnviz.settings import NORMALIZATIONS


@dataclass(frozen=True)
class Control:
    """The widget of a setting: its key, which is also its name in the address, and its label."""

    key: str
    label: str
    in_address: bool = True


CONTROLS = {
    "model.nonlinearity": Control("nonlinearity", "Nonlinearity"),
    "optimizer.learning_rate": Control("lr", "Learning rate"),
    "training.batch_size": Control("batch", "Batch size"),
    "training.steps": Control("steps", "Steps"),
    "training.seed": Control("seed", "Seed"),
    "data.input": Control("pixels", "Pixels"),
    "model.kind": Control("network", "Network"),
    "model.inception_channels": Control("inception_channels", "Channels of 4c and 4d"),
    "model.stem": Control("stem", "First convolution"),
    "model.response_normalization": Control("lrn", "Response normalization"),
    "model.hidden": Control("hidden", "Units of the hidden layers"),
    "model.channels": Control("channels", "Feature maps"),
    "model.kernel": Control("kernel", "Kernel size"),
    "model.dropout": Control("dropout", "Dropout"),
    "model.initialization": Control("init", "Initial weights"),
    "model.init_std": Control("init_std", "Initial weights' std"),
    "model.conv_scale": Control("conv_scale", "Convolutions' weights times"),
    "model.normalization": Control("normalization", "Normalization"),
    "model.bn_placement": Control("placement", "Placement"),
    "model.bn_affine": Control("affine", "γ and β"),
    "model.bn_per": Control("per", "Statistics for each"),
    "model.groups": Control("groups", "Groups"),
    "model.bn_epsilon": Control("epsilon", "ε"),
    "model.bn_momentum": Control("bn_momentum", "BN momentum"),
    "optimizer.kind": Control("optimizer", "Optimizer"),
    "optimizer.momentum": Control("momentum", "Momentum"),
    "optimizer.nesterov": Control("nesterov", "Nesterov"),
    "optimizer.l2": Control("l2", "L2"),
    "optimizer.schedule": Control("schedule", "Schedule"),
    "optimizer.decay_factor": Control("decay_factor", "Decay factor"),
    "optimizer.decay_steps": Control("decay_steps", "Decay steps"),
    "optimizer.warmup_steps": Control("warmup", "Warm-up steps"),
    "data.dataset": Control("dataset", "Data set"),
    "data.folder": Control("folder", "Folder", in_address=False),  # of this machine alone
    "data.image_size": Control("image_size", "Image size"),
    "data.examples": Control("examples", "Training examples"),
    "data.shuffling": Control("shuffling", "Shuffling"),
    "data.shard_size": Control("shard_size", "Shard size"),
    "data.crop_area": Control("crop_area", "Least area of crops"),
    "data.flip": Control("flip", "Mirror images"),
    "data.distortion": Control("distortion", "Photometric distortion"),
    "data.unreadable": Control("unreadable", "Images that cannot be read"),
    "data.loaders": Control("loaders", "Processes that read images"),
    "trace.records": Control("records", "Records"),
    "trace.probe": Control("probe", "Probe"),
    "trace.probe_size": Control("probe_size", "Probe size"),
    "trace.bn_mode": Control("bn_mode", "BN when probed"),
    "trace.layers": Control("layers", "Layers recorded"),
    "trace.predictions": Control("predictions", "Store predictions"),
    "training.evaluations": Control("evaluations", "Evaluations"),
    "training.precision": Control("precision", "Precision"),
    "training.device": Control("device", "Device"),
}
"""Every setting, with its control."""

DEFAULTS = RunConfig().flat()

FOLDERS = ("folder", "imagenet")
INCEPTIONS = ("inception", "small_inception")

EFFECTIVE_WITH = {
    "model.channels": ("model.kind", ("cnn",)),
    "model.kernel": ("model.kind", ("cnn",)),
    "model.hidden": ("model.kind", ("mlp", "cnn")),
    "model.inception_channels": ("model.kind", ("inception",)),
    "model.stem": ("model.kind", INCEPTIONS),
    "model.response_normalization": ("model.kind", INCEPTIONS),
    "model.conv_scale": ("model.kind", INCEPTIONS),
    "model.init_std": ("model.initialization", ("gaussian",)),
    "model.bn_per": ("model.normalization", ("batch",)),
    "model.groups": ("model.normalization", ("group",)),
    "optimizer.momentum": ("optimizer.kind", ("sgd",)),
    "optimizer.nesterov": ("optimizer.kind", ("sgd",)),
    "optimizer.decay_factor": ("optimizer.schedule", ("exponential", "step")),
    "optimizer.decay_steps": ("optimizer.schedule", ("exponential", "step")),
    "data.folder": ("data.dataset", ("fashion_mnist", "cifar10", *FOLDERS)),
    "data.image_size": ("data.dataset", FOLDERS),
    "data.unreadable": ("data.dataset", FOLDERS),
    "data.loaders": ("data.dataset", ("imagenet",)),
    "data.shard_size": ("data.shuffling", ("within_shards", "between_shards")),
    "trace.probe_size": ("trace.probe", ("heldout",)),
}
"""Settings that do something only with some values of another one. Else their control is off, and
a run has their default."""


def is_effective(path: str) -> bool:
    """Whether a setting does something, with what the other controls say now."""
    if path not in EFFECTIVE_WITH:
        return True
    other, values = EFFECTIVE_WITH[path]
    return st.session_state.get(CONTROLS[other].key, DEFAULTS[other]) in values


def widget(path: str, default: Any, fixed: Container[str] = ()) -> None:
    """The control of a setting.

    Args:
        default: its value as long as nobody has changed it.
        fixed: settings that are not for the user to choose now.
    """
    control, annotation = CONTROLS[path], field_info(path).annotation
    common: dict[str, Any] = {
        "key": control.key,
        "disabled": path in fixed or not is_effective(path),
        "help": explanation(path),
    }
    if control.in_address:
        common["bind"] = "query-params"
    if get_origin(annotation) is Literal:
        options = [o for o in get_args(annotation) if (path, o) != ("model.normalization", "none")]
        default = default if default in options else "batch"
        st.selectbox(control.label, options, index=options.index(default), **common)
    elif annotation is bool:
        st.checkbox(control.label, value=default, **common)
    elif annotation in (int, float):
        # No bounds here: a value out of range is answered with a sentence, not silently changed.
        whole = annotation is int
        form: dict[str, Any] = {"format": "%d", "step": 1} if whole else {"format": "%g"}
        st.number_input(control.label, value=default, **{"step": None, **form}, **common)
    else:
        st.text_input(control.label, value=as_widget(path, default), **common)


def as_widget(path: str, value: Any) -> Any:
    """The value of a setting as its widget has it."""
    if path == "model.normalization" and value == "none":
        return "batch"  # with and without is another control
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def value_of(path: str) -> Any:
    """What the control of a setting says, for `RunConfig.replace`, which checks it."""
    value = st.session_state[CONTROLS[path].key]
    if not is_effective(path):
        return DEFAULTS[path]
    if isinstance(DEFAULTS[path], tuple):
        try:
            return parse_values(str(value)) if value else []
        except ValueError:
            return str(value)
    return value


def set_values(values: Callable[[str], Any]) -> None:
    """Set every control to the value of its setting; in a callback."""
    for path, control in CONTROLS.items():
        st.session_state[control.key] = as_widget(path, values(path))


def explanation(path: str) -> str:
    """What a setting is, with the paper's section."""
    description = field_info(path).description
    text = f"{description[0].upper()}{description[1:]}."
    if path == "model.normalization":
        names = (f"{key}: {name}" for key, name in NORMALIZATIONS.items() if key != "none")
        text += f" With means: {'; '.join(names)}."
    return text
