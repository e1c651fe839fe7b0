"""The columns of a run's tables, with their units. `docs/data-format.md` is tested against this."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

GRID = (0, 1, 5, 10, 15, 25, 35, 50, 65, 75, 85, 90, 95, 99, 100)
"""Stored percentages. 15, 50 and 85 are the paper's (Figure 1 b, c); 0 and 100 bound the sample;
the rest gives quartiles, tails and enough points to redraw the whole distribution."""

GRID_COLUMNS = tuple(f"p{percentage}" for percentage in GRID)


def _field(name: str, type_: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, type_, metadata={"unit": unit, "meaning": meaning})


METRICS = pa.schema(
    [
        _field("step", pa.int32(), "updates", "completed updates; 0 is before the first"),
        _field("split", pa.string(), "", "train, or test for the whole test set"),
        _field(
            "loss",
            pa.float32(),
            "nats",
            "mean cross-entropy; on train rows over the minibatches since the previous train row",
        ),
        _field(
            "accuracy",
            pa.float32(),
            "fraction",
            "test: correct / all, BN with running statistics; train: not measured (null)",
        ),
        _field("learning_rate", pa.float32(), "", "learning rate in force at this step"),
        _field("wall_time_s", pa.float64(), "s", "seconds since training began"),
    ]
)

PERCENTILES = pa.schema(
    [
        _field("step", pa.int32(), "updates", "completed updates; 0 is before the first"),
        _field("layer", pa.string(), "", "from the input on conv1, …, hidden1, …"),
        _field("unit", pa.int32(), "", "unit or feature map within the layer, from 0"),
        _field("mean", pa.float32(), "pre-activation", "mean over the probe's examples"),
        _field(
            "std",
            pa.float32(),
            "pre-activation",
            "standard deviation over the probe's examples (divisor n)",
        ),
        *(
            _field(
                f"p{percentage}",
                pa.float32(),
                "pre-activation",
                f"{percentage}th percentile over the probe's examples, linear interpolation",
            )
            for percentage in GRID
        ),
    ]
)

EVENTS = pa.schema(
    [
        _field("step", pa.int32(), "updates", "completed updates when it took effect"),
        _field("name", pa.string(), "", "learning_rate: changed to value; resumed: went on here"),
        _field("value", pa.float64(), "", "the new value; null where there is none"),
        _field("wall_time_s", pa.float64(), "s", "seconds of training before it"),
    ]
)

IDENTITIES = (
    "output",
    "input_gradient",
    "weight_gradient",
    "orthogonality",
    "mean",
    "variance",
)
"""The paper's identities of BN; `bnviz.identities` says what each is."""

CHECKS = pa.schema(
    [
        _field("step", pa.int32(), "updates", "completed updates; 0 is before the first"),
        _field("layer", pa.string(), "", "from the input on conv1, …, hidden1, …"),
        _field("identity", pa.string(), "", ", ".join(IDENTITIES)),
        _field("units", pa.int32(), "", "units, feature maps or activations that were checked"),
        _field("left_out", pa.int32(), "", "those left out, constant over the batch"),
        _field("error", pa.float64(), "", "largest relative deviation with ε = 0, in float64"),
        _field("error_with_epsilon", pa.float64(), "", "the same with the ε of the run"),
    ]
)

TABLES = {"metrics": METRICS, "percentiles": PERCENTILES, "events": EVENTS, "checks": CHECKS}
