"""What a run is: one frozen RunConfig, validated in full before anything starts.

Defaults are the paper's wherever the paper states a value (Ioffe & Szegedy 2015, Section 4.1);
what it leaves open is marked "our choice".
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

TRAIN_EXAMPLES = {"mnist": 60_000}
"""Training examples of each data set, known here so that a batch size is checked before a start."""

TEST_EXAMPLES = {"mnist": 10_000}


class ConfigError(ValueError):
    """A configuration that cannot run. `problems` has one sentence for each fault found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(_Part):
    dataset: Literal["mnist"] = Field("mnist", description="data set")
    input: Literal["binary", "grey"] = Field(
        "binary",
        description="pixels: binary (grey level above 127; Section 4.1), or grey in [0, 1]",
    )


class ModelConfig(_Part):
    kind: Literal["mlp"] = Field("mlp", description="multilayer perceptron (Section 4.1)")
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (100, 100, 100),
        strict=False,
        min_length=1,
        max_length=20,
        description="units of each hidden layer",
    )
    nonlinearity: Literal["sigmoid", "relu", "tanh", "leaky_relu", "elu"] = Field(
        "sigmoid", description="activation function of the hidden layers (Section 4.1: sigmoid)"
    )
    normalization: Literal["none", "batch"] = Field(
        "batch", description="batch: g(BN(Wu)), no bias; none: g(Wu + b) (Section 3.2)"
    )
    initialization: Literal["gaussian", "glorot", "he", "orthogonal"] = Field(
        "gaussian",
        description="initial weights: gaussian, with init_std (Section 4.1); glorot (2010) and he "
        "(2015), Gaussian with a std that follows from the width of the layers; orthogonal",
    )
    init_std: float = Field(
        0.05,
        gt=0,
        le=10,
        description='std of the Gaussian initial weights ("small" in Section 4.1; our choice); '
        "the other initializations have their own",
    )
    bn_epsilon: float = Field(
        1e-5, gt=0, le=1, description="added to the variance (Algorithm 1; our choice)"
    )
    bn_momentum: float = Field(
        0.1,
        gt=0,
        le=1,
        description="weight of the newest batch in the running statistics (Section 3.1; our "
        "choice)",
    )

    @property
    def layers(self) -> dict[str, int]:
        """Hidden layers by name, from the input on, with their number of units."""
        return {f"hidden{i}": units for i, units in enumerate(self.hidden, start=1)}


class OptimizerConfig(_Part):
    kind: Literal["sgd"] = Field("sgd", description="plain stochastic gradient descent, mean loss")
    learning_rate: float = Field(
        0.15,
        gt=0,
        le=100,
        description="step size (Section 4.1 states none; our choice). BN is to allow higher ones "
        "(Section 3.3)",
    )


class TrainingConfig(_Part):
    steps: int = Field(50_000, ge=1, le=10_000_000, description="updates (50,000 in Section 4.1)")
    batch_size: int = Field(
        60, ge=1, le=1_000_000, description="examples a step (60 in Section 4.1)"
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="of the weights and the data order (the paper states none)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is one, else the CPU"
    )
    evaluations: int = Field(
        100,
        ge=1,
        le=100_000,
        description="evaluations on the whole test set, denser at the start (Figure 1 a)",
    )


class TraceConfig(_Part):
    records: int = Field(
        1_000,
        ge=0,
        le=1_000_000,
        description="percentile records, denser at the start (Figure 1 b, c); 0: none",
    )
    probe: Literal["heldout", "minibatch"] = Field(
        "heldout",
        description="heldout: a fixed sample of test examples; minibatch: the next training batch",
    )
    probe_size: int = Field(
        500, ge=2, le=1_000_000, description="examples in the fixed held-out sample"
    )
    bn_mode: Literal["batch", "running"] = Field(
        "batch", description="statistics that BN uses when probed; batch is the training network"
    )


class RunConfig(_Part):
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
        problems = []
        batch, available = self.training.batch_size, TRAIN_EXAMPLES[self.data.dataset]
        if batch > available:
            problems.append(
                f"training.batch_size = {batch}: {self.data.dataset} has {available:,} training "
                f"examples; choose at most {available:,}"
            )
        if batch == 1 and self.model.normalization == "batch":
            problems.append(
                "training.batch_size = 1: batch normalization needs a batch of at least 2 "
                "(the variance of one example is 0); choose 2 or more, or "
                "model.normalization = none"
            )
        test_examples = TEST_EXAMPLES[self.data.dataset]
        if self.trace.probe_size > test_examples:
            problems.append(
                f"trace.probe_size = {self.trace.probe_size}: {self.data.dataset} has "
                f"{test_examples:,} held-out examples; choose at most {test_examples:,}"
            )
        if problems:
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
        defaults = RunConfig().flat()
        return {path: value for path, value in self.flat().items() if value != defaults[path]}

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted path."""
        return {
            f"{part}.{key}": value
            for part, values in self.model_dump().items()
            for key, value in values.items()
        }

    @property
    def label(self) -> str:
        """What sets the two curves of the paper's figures apart."""
        return "With BN" if self.model.normalization == "batch" else "Without BN"


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
    assert issubclass(annotation, _Part)
    return annotation.model_fields[key]


def allowed(path: str) -> str:
    """What the field at a dotted path accepts, in words."""
    info = field_info(path)
    if choices := get_args(info.annotation) if _is_literal(info.annotation) else ():
        return "one of " + ", ".join(choices)
    bounds = {
        name: getattr(constraint, name)
        for constraint in info.metadata
        for name in ("gt", "ge", "le")
        if hasattr(constraint, name)
    }
    kind = {int: "a whole number", float: "a number"}.get(info.annotation)
    if kind is None:
        return "a list of 1 to 20 whole numbers from 1 to 4,096"
    low = f"above {bounds['gt']:,}" if "gt" in bounds else f"from {bounds['ge']:,}"
    return f"{kind} {low} {'and at most' if 'gt' in bounds else 'to'} {bounds['le']:,}"


def _is_literal(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is Literal


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
