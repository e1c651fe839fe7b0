"""What a run is: one frozen RunConfig, validated in full before anything starts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from bnviz.inception import LEAST_SIDE, LEAST_SIDE_OF_TWIN
from bnviz.settings import (
    DATASETS,
    NORMALIZATIONS,
    OVER_BATCH,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Part,
    TraceConfig,
    TrainingConfig,
)


class ConfigError(ValueError):
    """A configuration that cannot run. `problems` has one sentence for each fault found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class RunConfig(Part):
    """One training run. Construct with `RunConfig.parse`, which reports every fault at once."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    trace: TraceConfig = TraceConfig()

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate nested values, e.g. ``{"model": {"normalization": "none"}}``.

        Raises:
            ConfigError: with one sentence for each fault (path, value given, what is allowed).
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_sentences(error)) from None

    @classmethod
    def parse_json(cls, text: str) -> Self:
        """Validate the text of a `config.json`. Raises ConfigError."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError([f"not valid JSON: {error}"]) from None
        if not isinstance(values, dict):
            raise ConfigError(["the configuration must be a JSON object"])
        values.pop("schema_version", None)
        return cls.parse(values)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if problems := [*_data_problems(self), *_model_problems(self), *_optimizer_problems(self)]:
            raise ValueError("\n".join(problems))
        return self

    def replace(self, overrides: Mapping[str, Any]) -> RunConfig:
        """A copy with dotted paths set, e.g. ``{"model.normalization": "none"}``.

        Raises:
            ConfigError: an unknown path or a value out of range.
        """
        values = self.model_dump()
        merge(values, unflatten(overrides))
        return RunConfig.parse(values)

    def differences(self) -> dict[str, Any]:
        """Dotted paths at which this differs from the defaults, with the value here."""
        defaults = _defaults()
        return {path: value for path, value in self.flat().items() if value != defaults[path]}

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted path."""
        return {
            f"{part}.{key}": value
            for part, values in self.model_dump().items()
            for key, value in values.items()
        }

    @property
    def traced_layers(self) -> dict[str, int]:
        """The layers that are recorded, from the input on, with their number of units."""
        layers, chosen = self.model.layers, self.trace.layers
        return {n: units for n, units in layers.items() if not chosen or n in chosen}

    @property
    def train_examples(self) -> int | None:
        """How many examples an epoch has; None where a folder of images has to be read for that."""
        known = DATASETS.get(self.data.dataset)
        return self.data.examples or (known.train if known else None)

    @property
    def label(self) -> str:
        """What sets the two curves of the paper's figures apart."""
        return NORMALIZATIONS[self.model.normalization]


@cache
def _defaults() -> dict[str, Any]:
    return RunConfig().flat()


def _data_problems(config: RunConfig) -> list[str]:
    data, batch = config.data, config.training.batch_size
    known = DATASETS.get(data.dataset)
    problems = []
    if known and data.examples > known.train:
        problems.append(
            f"data.examples = {data.examples}: {data.dataset} has {known.train:,} training "
            f"examples; choose at most {known.train:,}, or 0 for all"
        )
    if (available := data.examples or (known.train if known else batch)) < batch:
        source = "data.examples leaves" if data.examples else f"{data.dataset} has"
        problems.append(
            f"training.batch_size = {batch}: {source} {available:,} training "
            f"examples; choose at most {available:,}"
        )
    if known and config.trace.probe_size > known.test:
        problems.append(
            f"trace.probe_size = {config.trace.probe_size}: {data.dataset} has "
            f"{known.test:,} held-out examples; choose at most {known.test:,}"
        )
    if data.input == "colour" and known and known.channels == 1:
        problems.append(
            f"data.input = 'colour': {data.dataset} has no colours; choose binary or grey"
        )
    if config.trace.predictions and data.input == "binary":
        problems.append(
            "trace.predictions = True: crops make grey levels of binary pixels; choose "
            "data.input = grey or colour, or no predictions"
        )
    if data.is_augmented and data.input == "binary":
        problems.append(
            "data.input = 'binary': crops and distortions make grey levels of it; choose grey or "
            "colour, or data.crop_area = 1, data.distortion = 0 and data.flip = false"
        )
    return problems


_NAMES = {
    "batch": "batch normalization",
    "batch_renorm": "batch renormalization",
    "whitening": "whitening",
}


def _model_problems(config: RunConfig) -> list[str]:
    model = config.model
    problems = []
    if config.training.batch_size == 1 and model.normalization in OVER_BATCH:
        problems.append(
            f"training.batch_size = 1: {_NAMES[model.normalization]} needs a batch of at least 2 "
            "(the variance of one example is 0); choose 2 or more, or "
            "model.normalization = none"
        )
    if model.normalization == "instance" and model.kind == "mlp":
        problems.append(
            "model.normalization = 'instance': an mlp has one value a unit, which has no "
            "variance; choose model.kind = cnn, or layer or group normalization"
        )
    groups = {"layer": 1, "group": model.groups}.get(model.normalization, 0)
    for name, units in model.layers.items() if groups else ():
        if units % groups:
            problems.append(
                f"model.groups = {groups}: does not divide the {units} units of {name}; choose a "
                "number that divides the units of every layer"
            )
            break
        if units == groups and name.startswith("hidden"):
            problems.append(
                f"model.normalization = {model.normalization!r}: one value of {name} is normalized "
                "alone, and has no variance; choose more units, or fewer model.groups"
            )
            break
    if model.bn_per != "feature_map" and model.normalization not in ("none", "batch"):
        problems.append(
            f"model.bn_per = {model.bn_per!r}: {model.normalization} normalization has no such "
            "form; choose feature_map, or model.normalization = batch"
        )
    if model.bn_per == "last_activations" and not model.is_inception:
        problems.append(
            f"model.bn_per = 'last_activations': the {model.kind} has no last module; choose "
            "feature_map or activation, or model.kind = small_inception"
        )
    if unknown := [name for name in config.trace.layers if name not in model.layers]:
        problems.append(
            f"trace.layers = {list(config.trace.layers)!r}: there is no layer "
            f"{', '.join(unknown)}; choose among {', '.join(model.layers)}"
        )
    if config.training.precision == "mixed" and model.normalization in (
        "batch_renorm",
        "whitening",
    ):
        problems.append(
            f"training.precision = 'mixed': {_NAMES[model.normalization]} needs the precision of "
            "float32; choose it, or another normalization"
        )
    known = DATASETS.get(config.data.dataset)
    if problem := size_problem(model, known.side if known else config.data.image_size):
        problems.append(problem)
    return problems


def size_problem(model: ModelConfig, side: int) -> str:
    """Why a network cannot see images of this height and width; "" if it can."""
    least = {"inception": LEAST_SIDE, "small_inception": LEAST_SIDE_OF_TWIN}.get(model.kind, 0)
    if side < least:
        return (
            f"model.kind = {model.kind!r}: the images are {side}×{side}, and its poolings need "
            f"{least}×{least} at least; choose larger images (data.image_size), or another network"
        )
    for number in range(1, len(model.channels) + 1) if model.kind == "cnn" else ():
        after = (side - model.kernel + 1) // 2  # the convolution, then the pooling
        if after < 1:
            return (
                f"model.kernel = {model.kernel}: conv{number} sees images of {side}×{side} and "
                f"needs {model.kernel + 1}×{model.kernel + 1} for its pooling; choose a smaller "
                "kernel or fewer convolutions (model.channels)"
            )
        side = after
    return ""


def _optimizer_problems(config: RunConfig) -> list[str]:
    optimizer = config.optimizer
    if optimizer.momentum and optimizer.kind != "sgd":
        return [
            f"optimizer.momentum = {optimizer.momentum}: {optimizer.kind} takes none; choose 0, "
            "or optimizer.kind = sgd"
        ]
    if optimizer.nesterov and not optimizer.momentum:
        return [
            "optimizer.nesterov = True: it is a form of momentum, which is 0; choose "
            "optimizer.momentum above 0"
        ]
    return []


def unflatten(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from dotted paths: ``{"a.b": 1}`` becomes ``{"a": {"b": 1}}``."""
    nested: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, key = path.split(".")
        at = nested
        for parent in parents:
            child = at.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError([f"{path}: {parent} is already given a value"])
            at = child
        at[key] = value
    return nested


def merge(into: dict[str, Any], differences: Mapping[str, Any]) -> None:
    """Lay nested differences over nested values, in place."""
    for key, value in differences.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def parse_setting(text: str) -> tuple[str, Any]:
    """`path=value` as typed on a command line; the value is read as TOML, else taken as text.

    Raises:
        ConfigError: no `=`, or nothing before it.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError([f"{text!r}: write PATH=VALUE, for example model.normalization=none"])
    try:
        return path.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value.strip()


def field_info(path: str) -> Any:
    """Pydantic's description of the field at a dotted path, e.g. for tooltips and ranges."""
    part, key = path.split(".")
    annotation = RunConfig.model_fields[part].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, Part)
    return annotation.model_fields[key]


def allowed(path: str) -> str:
    """What the field at a dotted path accepts, in words."""
    info = field_info(path)
    if get_origin(info.annotation) is Literal:
        return "one of " + ", ".join(get_args(info.annotation))
    bounds = _bounds(info.metadata)
    if info.annotation is bool:
        return "true or false"
    if info.annotation is str:
        return f"text of at most {bounds['max_length']:,} characters"
    if info.annotation in (int, float):
        kind = "a whole number" if info.annotation is int else "a number"
        return f"{kind} {_range(bounds)}"
    fewest, most = bounds.get("min_length", 0), bounds["max_length"]
    kind, field = get_args(get_args(info.annotation)[0])
    if kind is str:
        return f"a list of {fewest} to {most} names"
    item = _bounds(field.metadata)
    return f"a list of {fewest} to {most} whole numbers {_range(item)}"


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    names = ("gt", "ge", "lt", "le", "min_length", "max_length")
    return {n: getattr(each, n) for each in metadata for n in names if hasattr(each, n)}


def _range(bounds: dict[str, Any]) -> str:
    if "gt" in bounds:
        return f"above {bounds['gt']:,} and at most {bounds['le']:,}"
    if "lt" in bounds:
        return f"from {bounds['ge']:,} and below {bounds['lt']:,}"
    return f"from {bounds['ge']:,} to {bounds['le']:,}"


def _sentences(error: ValidationError) -> list[str]:
    # A list may be at fault as a whole and in its items: one sentence a field is enough.
    faults = {tuple(fault["loc"][:2]): fault for fault in reversed(error.errors())}
    return [line for fault in reversed(faults.values()) for line in _describe(fault)]


def _describe(fault: ErrorDetails) -> list[str]:
    loc = [str(item) for item in fault["loc"]]
    path, given = ".".join(loc), fault["input"]
    given = list(given) if isinstance(given, tuple) else given
    if fault["type"] == "extra_forbidden":
        owner: Any = RunConfig
        if len(loc) > 1:
            owner = RunConfig.model_fields[loc[0]].annotation
        known = ", ".join(owner.model_fields)
        return [f"{path}: unknown key; {'.'.join(loc[:-1]) or 'a run'} has {known}"]
    if not loc:  # raised by _parts_fit_together, already in sentences
        return str(fault["ctx"]["error"]).split("\n")
    if len(loc) == 1:
        return [f"{path} = {given!r}: must be a table of settings"]
    return [f"{path} = {given!r}: must be {allowed('.'.join(loc[:2]))}"]
