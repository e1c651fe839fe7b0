"""Figure 4 on the page Paper: the ensemble's table, theirs and ours."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from bnviz import ensembles, paper
from bnviz.ensembles import MembersError
from bnviz.predictions import Predictions
from bnviz.presets import Preset, find_preset
from bnviz.processes import true_status
from bnviz.status import AT_END
from bnviz.store import Run, StoreError
from bnviz.tables import WRITERS, origin
from bnviz.ui import frame, paper_runs
from bnviz.ui.exports import MIME
from bnviz.ui.text import literal

READING = """
An ensemble's class probabilities are the arithmetic mean of those of its members. **Theirs is
ImageNet**: 144 crops of 224 pixels, of images resized to four sizes, at three places and mirrored.
**Ours is the twin** on digits: 24 crops, of digits resized to 29, 30, 31 and 32 pixels; the three
places of a square image are the same, and a mirrored digit is another sign. The mean member is the
mean of the members' errors.
"""


def section() -> None:
    preset = find_preset("figure4")
    st.subheader("The paper's Figure 4", anchor=False)
    _table(paper.FIGURE_4, "figure4_paper")
    st.caption("Errors on the 50,000 validation images of ImageNet; crops and networks as stated.")
    st.subheader("Ours", anchor=False)
    found = paper_runs.find(preset)
    paper_runs.button(
        preset,
        found,
        1,
        "Start Figure 4",
        "Six runs of about five minutes each on one CPU core, two at once on two cores. The table "
        "fills as they end, and the ensemble stands in it after the last.",
    )
    members = {name: own[0] for name, own in found.items() if 0 in own}
    if members:
        frame.watch(_draw, list(members.values()), preset, members)
        _downloads(preset, members)
    st.subheader("What the members are", anchor=False)
    st.caption(literal(preset.why))
    st.dataframe(_changes(preset), hide_index=True, key="members")


def predicted(members: dict[str, Run]) -> tuple[dict[str, Predictions], list[str]]:
    """What those members predict that have ended, and why the others' files cannot be read."""
    known: dict[str, Predictions] = {}
    damaged = []
    for name, run in members.items():
        try:
            own = run.predictions()
        except StoreError as error:
            damaged.append(str(error))
            continue
        if own is not None:
            known[name] = own
    return known, damaged


def errors(preset: Preset, known: dict[str, Predictions]) -> pd.DataFrame:
    """As `ensembles.table`; the ensemble is there where all of its members are.

    Raises:
        MembersError: as `ensembles.table`.
    """
    rows = ensembles.table(known)
    return rows if len(known) == len(preset.runs) else rows[rows["model"] != "ensemble"]


def _draw(preset: Preset, members: dict[str, Run]) -> None:
    paper_runs.progress(members, "figure4")
    paper_runs.stopped(members.values())
    known, damaged = predicted(members)
    for sentence in damaged:
        st.warning(literal(sentence), icon=":material/broken_image:")
    ended = [name for name, run in members.items() if true_status(run).state in AT_END]
    if without := [name for name in ended if name not in known]:
        st.warning(
            f"{literal(', '.join(without))}: no class probabilities are stored, the log says why. "
            "Start it again, or there is no ensemble of all."
        )
    if not known:
        st.info("The first errors stand here when the first run has ended.")
        return
    try:
        rows = errors(preset, known)
    except MembersError as error:
        st.error(literal(f"These runs make no ensemble: {error}."), icon=":material/error:")
        return
    if len(known) < len(preset.runs):
        st.info(
            f"{len(known)} of {len(preset.runs)} members have ended; the ensemble of all stands "
            "here when the last one does."
        )
    _beside_the_papers(rows)
    st.caption(READING)
    if len(known) == len(preset.runs):
        st.markdown(reading(rows))


def reading(rows: pd.DataFrame) -> str:
    """Which of the paper's relations hold of the errors of a whole ensemble."""
    single, many = (rows[rows["crops"] == crops] for crops in (1, rows["crops"].max()))

    def top1(part: pd.DataFrame, model: str) -> float:
        return float(part.loc[part["model"] == model, "top1"].iloc[0])

    together, mean = top1(many, "ensemble"), top1(many, "mean member")
    members = many[~many["model"].isin(["ensemble", "mean member"])]
    best = float(members["top1"].min())
    crops, crop = mean, top1(single, "mean member")
    return "\n".join(
        [
            f"- The ensemble errs in {together:.2%}, the mean member in {mean:.2%}: the paper's "
            f"relation {'holds' if together < mean else '**does not hold**'} (20.1% against "
            f"21.99% for one network). The best member errs in {best:.2%}.",
            f"- By many crops the mean member errs in {crops:.2%}, by one in {crop:.2%}: the "
            f"paper's relation {'holds' if crops < crop else '**does not hold**'} (21.99% against "
            "25.2%).",
        ]
    )


PAPERS = {
    ("mean member", "single"): "BN-Inception single crop",
    ("mean member", "many"): "BN-Inception multicrop",
    ("ensemble", "many"): "BN-Inception ensemble",
}
"""Rows of the paper's table by what they are in ours. Its one network is the mean member here."""


def beside_the_papers(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each model: its errors by one crop and by many, and the paper's."""
    theirs = paper.FIGURE_4.set_index("model").to_dict("index")
    parts = {"single": rows[rows["crops"] == 1], "many": rows[rows["crops"] > 1]}
    wide = pd.DataFrame({"model": parts["single"]["model"].to_numpy()})
    for which, part in parts.items():
        for top in ("top1", "top5"):
            wide[f"{which}_{top}"] = part[top].to_numpy()
    for which in parts:
        for top in ("top1", "top5"):
            own = [PAPERS.get((model, which), "") for model in wide["model"]]
            wide[f"paper_{which}_{top}"] = pd.Series(
                [theirs[name][top] if name else np.nan for name in own], dtype="float64"
            )
    return wide


def _beside_the_papers(rows: pd.DataFrame) -> None:
    share = partial(st.column_config.NumberColumn, format="percent")
    crops = {"single": "1 crop", "many": f"{rows['crops'].max()} crops"}
    tops = {"top1": "top-1", "top5": "top-5"}
    st.dataframe(
        beside_the_papers(rows),
        hide_index=True,
        key="figure4_ours",
        placeholder="–",
        column_config={"model": "Model"}
        | {
            f"{which}_{top}": share(f"ours, {words}: {name}")
            for which, words in crops.items()
            for top, name in tops.items()
        }
        | {
            f"paper_{which}_{top}": share(f"paper, {words}: {name}")
            for which, words in {"single": "1 crop", "many": "144 crops"}.items()
            for top, name in tops.items()
        },
    )


def _table(rows: pd.DataFrame, key: str) -> None:
    share = partial(st.column_config.NumberColumn, format="percent")
    st.dataframe(
        rows,
        hide_index=True,
        key=key,
        placeholder="–",
        column_config={
            "model": "Model",
            "networks": st.column_config.NumberColumn("Networks"),
            "crops": "Crops",
            "top1": share("Top-1 error"),
            "top5": share("Top-5 error"),
        },
    )


def _downloads(preset: Preset, members: dict[str, Run]) -> None:
    if not any(run.paths.predictions.is_file() for run in members.values()):
        return

    def file(format: str) -> bytes:
        known, _ = predicted(members)
        chosen = [members[name] for name in known]
        return WRITERS[format](errors(preset, known), origin(chosen))

    with st.container(horizontal=True):
        for format, word in (("csv", "CSV"), ("parquet", "Parquet")):
            st.download_button(
                f"Errors {word}",
                partial(file, format),
                f"figure4.{format}",
                MIME[format],
                on_click="ignore",
                key=f"figure4-{format}",
            )


def _changes(preset: Preset) -> pd.DataFrame:
    rows = []
    for name, config in preset.runs.items():
        model = config.model
        last = "each activation" if model.bn_per == "last_activations" else "each feature map"
        rows.append(
            {
                "member": name,
                "initial weights of convolutions": f"× {model.conv_scale:g}",
                "dropout": model.dropout,
                "statistics in the last module": last,
                "seed": config.training.seed,
            }
        )
    return pd.DataFrame(rows)
