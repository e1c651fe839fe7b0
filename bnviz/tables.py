"""Tables of runs, to look at and to download, with where they come from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnviz import paper
from bnviz.captions import labels
from bnviz.figures import RunData
from bnviz.percentiles import typical_unit
from bnviz.schema import PERCENTILES, SCHEMA_VERSION, TABLES
from bnviz.store import Run
from bnviz.versions import versions


def typical_unit_of(runs: Sequence[Run], layer: str) -> int | None:
    """The typical unit of a layer, the same for all runs; None before the first record.

    It is typical of the first run without BN that recorded step 0, else of the first with BN, among
    the units that all runs have.
    """
    shared = min(run.layers[layer] for run in runs)
    for run in sorted(runs, key=lambda run: run.config.model.normalization != "none"):
        spread = run.spread_at_start(layer)[:shared]
        if len(spread) == shared:
            return typical_unit(spread)
    return None


def unit_of(runs: Sequence[Run], layer: str, unit: int | None) -> int | None:
    """The unit, or for None the typical one; None before the first record."""
    return typical_unit_of(runs, layer) if unit is None else unit


def run_data(
    runs: Sequence[Run], layer: str, unit: int | None, panels: int | None = None
) -> list[RunData]:
    """What `bnviz.figures` draws of these runs, for one unit; for None, no unit's rows. Reads the
    percentiles of the first `panels` runs alone, where that is given."""
    return [
        RunData(
            run.run_id,
            label,
            run.config.model.normalization,
            run.config.model.nonlinearity,
            run.config.training.steps,
            run.metrics("test"),
            unit_rows(run, layer, unit if panels is None or i < panels else None),
            run.rate_changes(),
        )
        for i, (run, label) in enumerate(zip(runs, labels(runs), strict=True))
    ]


def unit_rows(run: Run, layer: str, unit: int | None) -> pd.DataFrame:
    """Rows of the percentiles table of one unit; for None, none."""
    if unit is None:
        return PERCENTILES.empty_table().to_pandas()
    return run.percentiles(layer, unit)


def accuracy_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Test accuracy against steps: run_id, normalization, step, accuracy, loss."""
    frames = []
    for run in runs:
        tests = run.metrics("test")
        frames.append(
            tests[["step", "accuracy", "loss"]].assign(
                run_id=run.run_id, normalization=run.config.model.normalization
            )
        )
    table = pd.concat(frames, ignore_index=True)
    return table[["run_id", "normalization", "step", "accuracy", "loss"]]


def percentiles_table(runs: Sequence[Run], layer: str, unit: int) -> pd.DataFrame:
    """One unit's percentiles: run_id, normalization, then the columns of the stored table."""
    frames = []
    for run in runs:
        rows = run.percentiles(layer, unit)
        rows.insert(0, "run_id", run.run_id)
        rows.insert(1, "normalization", run.config.model.normalization)
        frames.append(rows)
    return pd.concat(frames, ignore_index=True)


def origin(runs: Sequence[Run], *, with_paper: bool = False) -> dict[str, Any]:
    """What a file must carry to say where it comes from: runs, configurations, versions, units,
    date, and what is missing. Made after what is in the file: damage shows when it is read.

    Args:
        with_paper: the file has numbers of the paper's, too.
    """
    units = {
        field.name: field.metadata[b"unit"].decode()
        for schema in TABLES.values()
        for field in schema
        if field.metadata[b"unit"]
    }
    return {
        "source": "bnviz",
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "units": units,
        "runs": {run.run_id: run.config.model_dump(mode="json") for run in runs},
        "learning_rate_changes": {run.run_id: dict(run.rate_changes()) for run in runs},
        "damaged_and_left_out": {
            run.run_id: sorted(f"{part.parent.name}/{part.name}" for part in run.damaged)
            for run in runs
        },
        **({"paper": paper.CITATION} if with_paper else {}),
    }


def to_csv(table: pd.DataFrame, origin: dict[str, Any]) -> bytes:
    """CSV with the origin in `#` lines before the header (pandas: `read_csv(…, comment="#")`)."""
    text = io.StringIO()
    for key, value in origin.items():
        text.write(f"# {key}: {value if isinstance(value, str) else json.dumps(value)}\n")
    table.to_csv(text, index=False, lineterminator="\n")
    return text.getvalue().encode()


def to_parquet(table: pd.DataFrame, origin: dict[str, Any]) -> bytes:
    """Parquet with the origin as JSON in the schema's metadata, under `bnviz`."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), b"bnviz": json.dumps(origin).encode()}
    buffer = io.BytesIO()
    pq.write_table(arrow.replace_schema_metadata(metadata), buffer, compression="zstd")
    return buffer.getvalue()


WRITERS: dict[str, Callable[[pd.DataFrame, dict[str, Any]], bytes]] = {
    "csv": to_csv,
    "parquet": to_parquet,
}
"""What makes a file of a table and its origin, by format."""
