"""Choose the learning rate and the weights' std of `figure1.toml`, which the paper does not state.

Rule: of the pairs tried, take the one whose accuracy curves lie closest to the paper's digitised
Figure 1(a): smallest root mean square difference over both curves (with and without BN), the steps
in `bnviz.paper.COMPARED_STEPS`, and the seeds. First one seed on a grid, then more seeds for the
closest few.

    python experiments/calibrate_figure1.py --jobs 2           # about an hour on two cores
    python experiments/calibrate_figure1.py --report           # only the table, from the results

Every finished run is appended to `calibration_figure1.csv`; a second call skips what is there.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnviz import paper
from bnviz.config import RunConfig

RESULTS = Path(__file__).with_suffix("").parent / "calibration_figure1.csv"
INIT_STDS = (0.03, 0.05, 0.07, 0.1)
LEARNING_RATES = (0.1, 0.15, 0.2, 0.3)
SEEDS = (0, 1, 2)
FINALISTS = 3

Run = tuple[float, float, str, int]  # init_std, learning_rate, normalization, seed


def accuracy_curve(run: Run) -> tuple[Run, np.ndarray]:
    """Train one run and read its test accuracy at COMPARED_STEPS and at the end."""
    import torch

    from bnviz.records import Metrics
    from bnviz.training import train

    torch.set_num_threads(1)
    init_std, learning_rate, normalization, seed = run
    config = RunConfig().replace(
        {
            "model.init_std": init_std,
            "model.normalization": normalization,
            "optimizer.learning_rate": learning_rate,
            "training.seed": seed,
            "trace.records": 0,
        }
    )
    tests = [r for r in train(config) if isinstance(r, Metrics) and r.split == "test"]
    steps = [*paper.COMPARED_STEPS, paper.STEPS]
    return run, np.interp(steps, [r.step for r in tests], [r.accuracy or 0 for r in tests])


def results() -> pd.DataFrame:
    columns = ["init_std", "learning_rate", "normalization", "seed"]
    columns += [f"step_{step}" for step in (*paper.COMPARED_STEPS, paper.STEPS)]
    return pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=columns)


def table() -> pd.DataFrame:
    """RMS difference to the paper for each pair, in percentage points; closest first."""
    rows = []
    compared = [f"step_{step}" for step in paper.COMPARED_STEPS]
    for (init_std, learning_rate), group in results().groupby(["init_std", "learning_rate"]):
        squares = {
            kind: np.square(curves[compared].to_numpy() - paper.accuracy_at(str(kind))) * 1e4
            for kind, curves in group.groupby("normalization")
        }
        if set(squares) != {"none", "batch"}:
            continue
        rows.append(
            {
                "init_std": init_std,
                "learning_rate": learning_rate,
                "seeds": group["seed"].nunique(),
                "rms_without_bn": np.sqrt(squares["none"].mean()),
                "rms_with_bn": np.sqrt(squares["batch"].mean()),
                "rms": np.sqrt((squares["none"].mean() + squares["batch"].mean()) / 2),
            }
        )
    return pd.DataFrame(rows).sort_values("rms", ignore_index=True)


def train_missing(wanted: list[Run], jobs: int) -> None:
    done = set(
        results()[["init_std", "learning_rate", "normalization", "seed"]].itertuples(
            index=False, name=None
        )
    )
    missing = [run for run in wanted if run not in done]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for run, accuracies in pool.imap_unordered(accuracy_curve, missing):
            row = pd.DataFrame([[*run, *accuracies.round(4)]], columns=results().columns)
            row.to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)
            print(*run, accuracies.round(3), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        kinds = ("none", "batch")
        train_missing(
            list(itertools.product(INIT_STDS, LEARNING_RATES, kinds, SEEDS[:1])), arguments.jobs
        )
        closest = table().head(FINALISTS)[["init_std", "learning_rate"]]
        pairs = list(closest.itertuples(index=False, name=None))
        train_missing(
            [(*pair, kind, seed) for pair in pairs for kind in kinds for seed in SEEDS],
            arguments.jobs,
        )
    print(table().round(2).to_string(index=False))


if __name__ == "__main__":
    main()
