"""Every preset with three seeds: what came of each of its runs.

    python benchmarks/bench_presets.py ROOT [PRESET …]

The runs are ordinary ones below ROOT, as many at once as there are cores. Those that are there
already, with the same configuration, are not trained again, so it can be stopped and started.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnviz import jobs, store
from bnviz.config import RunConfig
from bnviz.presets import Preset, presets
from bnviz.status import State
from bnviz.store import Run, StoreError

SEEDS = (0, 1, 2)


def main(root: Path, names: list[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    chosen = {name: preset for name, preset in presets().items() if not names or name in names}
    trained = configurations(root)
    for preset in chosen.values():
        for run_name, config in seeded(preset):
            if config not in trained:
                run_id = jobs.submit(config, root, f"{preset.name}-{run_name}")
                trained[config] = store.open_run(root / run_id)
    for preset in chosen.values():
        for _, config in seeded(preset):
            while trained[config].status.state in (State.QUEUED, State.RUNNING):
                time.sleep(2)
        print(table(preset, trained), flush=True)


def seeded(preset: Preset) -> list[tuple[str, RunConfig]]:
    """Its runs by name, each with every seed."""
    runs: dict[str, RunConfig] = {}
    for name, config in preset.runs.items():
        for seed in SEEDS:
            with_seed = config.replace({"training.seed": seed})
            if with_seed not in runs.values():  # a preset may sweep seeds itself
                runs[f"{name}-s{seed}"] = with_seed
    return list(runs.items())


def configurations(root: Path) -> dict[RunConfig, Run]:
    """Runs that are there and have come or may come to an end."""
    found = {}
    for run_id in store.list_run_ids(root):
        run = store.open_run(root / run_id)
        try:
            if run.status.state not in (State.CANCELLED, State.FAILED):
                found[run.config] = run
        except StoreError:
            continue
    return found


def table(preset: Preset, trained: dict[RunConfig, Run]) -> str:
    """Markdown: for each of its runs the final accuracy over the seeds, and what diverged."""
    lines = [f"\n**{preset.name}**: {preset.title}\n"]
    lines += ["| run | test accuracy (least to greatest) | diverged |", "|---|---|---|"]
    groups: dict[RunConfig, tuple[str, list[Run]]] = {}
    names = {c.replace({"training.seed": 0}): n for n, c in reversed(preset.runs.items())}
    for _, config in seeded(preset):
        key = config.replace({"training.seed": 0})
        groups.setdefault(key, (names[key], []))[1].append(trained[config])
    for name, runs in groups.values():
        ended = [run for run in runs if run.status.state is State.COMPLETED]
        accuracies = np.array([run.status.test_accuracy for run in ended])
        text = "–"
        if len(accuracies):
            text = f"{accuracies.mean():.4f} ({accuracies.min():.4f} to {accuracies.max():.4f})"
        diverged = [r.status.step for r in runs if r.status.state is State.DIVERGED]
        words = f"{len(diverged)} of {len(runs)}, at step {min(diverged)}" if diverged else ""
        lines.append(f"| {name} | {text} | {words} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
