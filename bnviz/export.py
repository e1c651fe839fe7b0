"""Figures and their data to files that name where they come from."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq

from bnviz.captions import labels
from bnviz.figures import RunData, figure1
from bnviz.files import write_aside
from bnviz.percentiles import typical_unit
from bnviz.schema import PERCENTILES, SCHEMA_VERSION, TABLES
from bnviz.store import Run, StoreError

Writer = Callable[[pd.DataFrame, dict[str, Any]], bytes]
"""A table and its origin to the bytes of a file."""

DATA_FORMATS = ("csv", "parquet")
FIGURE_FORMATS = ("html", "png", "svg", "pdf")
TABLE_NAMES = ("percentiles", "accuracy")


def typical_unit_of(runs: Sequence[Run], layer: str) -> int | None:
    """The typical unit of a layer, the same for all runs; None before the first record.

    It is typical of the first run without BN that recorded step 0, else of the first with BN, among
    the units that all runs have.
    """
    shared = min(run.layers[layer] for run in runs)
    for run in sorted(runs, key=lambda run: run.config.model.normalization == "batch"):
        spread = run.spread_at_start(layer)[:shared]
        if len(spread) == shared:
            return typical_unit(spread)
    return None


def run_data(runs: Sequence[Run], layer: str, unit: int | None) -> list[RunData]:
    """What `bnviz.figures` draws of these runs, for one unit; for None, no unit's rows."""
    return [
        RunData(
            run.run_id,
            label,
            run.config.model.normalization,
            run.config.model.nonlinearity,
            run.config.training.steps,
            run.metrics(),
            PERCENTILES.empty_table().to_pandas() if unit is None else run.percentiles(layer, unit),
            run.events(),
        )
        for run, label in zip(runs, labels(runs), strict=True)
    ]


def accuracy_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Test accuracy against steps: run_id, normalization, step, accuracy, loss."""
    frames = []
    for run in runs:
        tests = run.metrics().query("split == 'test'")
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


def origin(runs: Sequence[Run]) -> dict[str, Any]:
    """What a file must carry to say where it comes from: runs, configurations, units, date."""
    units = {
        field.name: field.metadata[b"unit"].decode()
        for schema in TABLES.values()
        for field in schema
        if field.metadata[b"unit"]
    }
    return {
        "source": "bnviz",
        "schema_version": SCHEMA_VERSION,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "units": units,
        "runs": {run.run_id: run.config.model_dump(mode="json") for run in runs},
        "learning_rate_changes": {run.run_id: _rate_changes(run) for run in runs},
    }


def _rate_changes(run: Run) -> dict[int, float]:
    """Step to the learning rate set there, where it was changed while training."""
    changes = run.events().query("name == 'learning_rate'")
    return dict(zip(changes["step"].tolist(), changes["value"].tolist(), strict=True))


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


def to_html(figure: go.Figure) -> bytes:
    """One file that opens in any browser, with no network."""
    return figure.to_html(include_plotlyjs=True, full_html=True).encode()


def to_image(figure: go.Figure, format: str) -> bytes:
    """PNG, SVG or PDF.

    Raises:
        StoreError: this machine lacks kaleido, or a Chromium for it.
    """
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise StoreError(
            f"writing {format} needs the package kaleido: pip install kaleido; html needs nothing, "
            "and the dashboard's buttons save PNG and SVG"
        ) from None
    browsers = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    browser = os.environ.get("BROWSER_PATH") or next(
        filter(None, map(shutil.which, browsers)), None
    )
    if browser is None:
        raise StoreError(
            f"writing {format} needs Chromium or Chrome, and none was found; install one (Debian: "
            "apt install chromium); html needs nothing"
        )
    os.environ["BROWSER_PATH"] = browser
    return figure.to_image(format=format, width=1200, scale=2)


def export(
    runs: Sequence[Run],
    directory: Path,
    what: Sequence[str],
    formats: Sequence[str],
    layer: str | None = None,
    unit: int | None = None,
) -> list[Path]:
    """Write tables and the figure of some runs; returns the files written.

    Args:
        what: of TABLE_NAMES; which tables the data formats write.
        formats: of DATA_FORMATS and FIGURE_FORMATS.
        layer: by default the last hidden layer.
        unit: by default the typical one.

    Raises:
        StoreError: no such layer or unit, nothing recorded yet, or the folder cannot be written.
    """
    layer = layer or list(runs[0].layers)[-1]
    for run in runs:
        run.check_unit(layer, unit)
    if unit is None:
        unit = typical_unit_of(runs, layer)
    if unit is None:
        raise StoreError(f"no percentiles of {layer} are recorded yet, so there is no such figure")
    tables = {
        "percentiles": lambda: percentiles_table(runs, layer, unit),
        "accuracy": lambda: accuracy_table(runs),
    }
    names = {"percentiles": f"percentiles-{layer}-unit{unit}", "accuracy": "accuracy"}
    source = origin(runs)
    contents: dict[str, bytes] = {}
    for format in formats:
        if format in DATA_FORMATS:
            write = to_csv if format == "csv" else to_parquet
            for name in what:
                contents[f"{names[name]}.{format}"] = write(tables[name](), source)
            continue
        figure = figure1(run_data(runs, layer, unit), layer, f"unit {unit}")
        to_bytes = to_html(figure) if format == "html" else to_image(figure, format)
        contents[f"figure1-{layer}-unit{unit}.{format}"] = to_bytes
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_aside(directory / name, content)
    except OSError as error:
        raise StoreError(
            f"cannot write to {directory}: {error.strerror}; choose another folder with --to"
        ) from error
    return [directory / name for name in contents]
