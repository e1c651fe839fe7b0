"""The section Inference of the page Method: accuracies by Algorithm 2, and the network to
download."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st

from bnviz.accuracies import Inference
from bnviz.processes import true_status
from bnviz.settings import NORMALIZATIONS, OVER_BATCH
from bnviz.status import ACTIVE, State
from bnviz.store import Run, StoreError
from bnviz.ui import frame
from bnviz.ui.text import literal

PROJECT = Path(__file__).resolve().parents[2]

EXPORT_TIMEOUT_S = 600
"""Loading torch, reading the data and writing the file take some ten seconds; a busy machine takes
longer."""

ROWS = """
- **Batch statistics**: the training network. The output for an example depends on the others of its
  batch. In a batch of one a fully connected unit has no variance: x̂ = 0, and its output is β.
  (Batch renormalization keeps a part of x, by its running statistics.)
- **Moving averages**: what training has gathered, as the test accuracy of a run is measured.
- **Population statistics**: E[x] and Var[x] over {batches} minibatches of {batch_size} training
  examples, of the final network (Algorithm 2).
- **Folded**: the same with W and b in the place of normalization (Algorithm 2, step 11).
"""


def section(run: Run) -> None:
    st.subheader("Inference (Algorithm 2)", anchor=False)
    frame.watch(_draw, [run], run)
    _download(run)


def _draw(run: Run) -> None:
    kind = run.config.model.normalization
    if kind not in OVER_BATCH:
        st.info(
            f"{literal(NORMALIZATIONS[kind])}: this run normalizes nothing by the statistics of a "
            "batch, so for inference its network stays as it is. Choose a run with BN to compare "
            "the statistics it can infer by."
        )
        return
    if run.config.data.is_streamed:
        st.info(
            "This run reads its images from the disk. Measuring it by other statistics would take "
            "many more passes over them, so that is not done."
        )
        return
    measured = run.inference()  # a StoreError is shown by the frame
    state = true_status(run).state
    if measured is not None:
        _table(measured)
    elif state in ACTIVE:
        st.info("The accuracies are measured when the run ends; they will stand here then.")
    elif state is State.COMPLETED:
        st.info(
            "Nothing is measured for this run: it was made by a version of bnviz that did not. "
            "Start it again with the same settings to have it."
        )
    elif state is State.DIVERGED:
        st.info("This run diverged, so there is no network to infer with. Choose another run.")
    else:
        st.info(
            "This run has not come to its end, where the accuracies are measured. Resume it, and "
            "they will stand here."
        )


def _table(measured: Inference) -> None:
    rows = {
        "Batch statistics": measured.batch_statistics,
        "Moving averages": measured.moving_averages,
        "Population statistics (Algorithm 2)": measured.population_statistics,
        "Folded": measured.folded,
    }
    table = pd.DataFrame(
        {
            "normalized by": list(rows),
            "in_batches": [row.in_batches if row else None for row in rows.values()],
            "examples": [measured.examples if row else None for row in rows.values()],
            "alone": [row.alone if row else None for row in rows.values()],
            "examples_alone": [measured.examples_alone if row else None for row in rows.values()],
        }
    ).astype({"examples": "Int64", "examples_alone": "Int64"})
    number = partial(st.column_config.NumberColumn, format="%.4f")
    count = partial(st.column_config.NumberColumn, "test examples", format="localized")
    st.dataframe(
        table,
        hide_index=True,
        key="inference_table",
        placeholder="–",
        column_config={
            "normalized by": st.column_config.TextColumn("normalized by"),
            "in_batches": number(f"accuracy in batches of {measured.test_batch_size:,}"),
            "examples": count(),
            "alone": number("accuracy one at a time"),
            "examples_alone": count(),
        },
    )
    st.markdown(_reading(measured))
    st.markdown(ROWS.format(batches=measured.batches, batch_size=measured.batch_size))


def _reading(measured: Inference) -> str:
    """What the table says, in words."""
    batch, population = measured.batch_statistics, measured.population_statistics
    text = (
        f"By the statistics of its batch the network gets {batch.in_batches:.1%} of the test "
        f"examples right, and {batch.alone:.1%} where each comes alone. By population statistics "
        f"it is {population.in_batches:.1%}, whatever else is in the batch."
    )
    if measured.examples_alone < measured.examples:
        text += (
            f" One at a time are the first {measured.examples_alone:,} of them, in a random order; "
            f"by population statistics {population.alone:.1%} of those are right."
        )
    if measured.folded is None:
        return f"{text} It is not folded: {literal(measured.not_folded)}."
    if measured.logit_difference is not None:
        text += (
            f" The folded network differs by at most {measured.logit_difference:.1e} in a logit."
        )
    return text


def _download(run: Run) -> None:
    if run.config.data.is_streamed:
        return  # folding needs the images, which are not in memory
    ready = run.paths.checkpoint.is_file()
    st.download_button(
        "Download the network (ONNX)",
        partial(network_file, run),
        f"model-{run.run_id}.onnx",
        "application/octet-stream",
        on_click="ignore",
        key="download_model",
        icon=":material/download:",
        disabled=not ready,
        help=None if ready else "There is no network yet: the first checkpoint comes after 10 s.",
    )
    st.caption(
        "The network of the last checkpoint, with population statistics folded into its weights "
        "where it has BN before the nonlinearity: images to logits, with pixels as the run had "
        f"them ({run.config.data.input}). Making it takes some seconds. If it fails, this says "
        "why: " + literal(f"python -m bnviz export {run.run_id} --what model --to DIR")
    )


def network_file(run: Run) -> bytes:
    """The ONNX file of a run, made in a process of its own: the page does not load torch.

    Raises:
        StoreError: it cannot be made; the message says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = run.paths.directory.absolute().parent
        command = [sys.executable, "-m", "bnviz", "export", run.run_id, "--what", "model"]
        command += ["--to", folder, "--root", str(root)]
        try:
            ended = subprocess.run(
                command, cwd=PROJECT, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S
            )
            if ended.returncode:
                raise StoreError(ended.stderr.strip())
            return (Path(folder) / f"model-{run.run_id}.onnx").read_bytes()
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StoreError(f"cannot export the network of {run.run_id}: {error}") from error
