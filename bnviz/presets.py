"""Named experiments: TOML files with the runs to start, and why they are worth it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnviz import grids
from bnviz.config import ConfigError, RunConfig, merge, unflatten

PRESET_DIR = Path(__file__).resolve().parent.parent / "experiments"


@dataclass(frozen=True)
class Preset:
    """A named experiment: one or more runs, and why they are worth running.

    `sweep` names the settings (dotted paths) of which its runs are all combinations.
    """

    name: str
    title: str
    why: str
    runs: dict[str, RunConfig]
    sweep: tuple[str, ...] = ()

    @property
    def varied(self) -> tuple[str, ...]:
        """Settings (dotted paths) in which its runs differ, but for being with or without
        normalization."""
        flat = [config.flat() for config in self.runs.values()]
        kinds = {values["model.normalization"] for values in flat} - {"none"}
        return tuple(
            path
            for path in flat[0]
            if len({repr(values[path]) for values in flat}) > 1
            and (path != "model.normalization" or len(kinds) > 1)
        )


def load_preset(path: Path) -> Preset:
    """Read a preset: differences from the defaults, common ones first, then each `[[runs]]`, or
    `[sweep]`, lists of values of which there is a run for each combination.

    Raises:
        ConfigError: unreadable, not TOML, or not a valid experiment.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path} is not valid TOML: {error}"]) from None
    title = values.pop("title", path.stem)
    why = values.pop("why", "")
    sweep = values.pop("sweep", {})
    if sweep and "runs" in values:
        raise ConfigError([f"{path}: give either [[runs]] or [sweep]"])
    runs = values.pop("runs", [{"name": "run"}])
    if sweep:
        runs, sweep = _sweep_runs(path, sweep)
    if not isinstance(title, str) or not isinstance(why, str):
        raise ConfigError([f"{path}: title and why must be text"])
    if not (isinstance(runs, list) and runs and all(isinstance(run, dict) for run in runs)):
        raise ConfigError([f"{path}: runs must be one or more [[runs]] tables"])
    configs: dict[str, RunConfig] = {}
    for number, run in enumerate(runs, start=1):
        name = run.pop("name", f"run{number}")
        if not isinstance(name, str) or name in configs:
            raise ConfigError([f"{path}: every run needs a name of its own, got {name!r}"])
        combined = json.loads(json.dumps(values, default=str))
        merge(combined, run)
        configs[name] = RunConfig.parse(combined)
    return Preset(path.stem, title, " ".join(why.split()), configs, tuple(sweep))


def _sweep_runs(path: Path, sweep: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The runs of a `[sweep]` table, and its values by dotted path."""
    if not (isinstance(sweep, dict) and all(isinstance(part, dict) for part in sweep.values())):
        raise ConfigError([f"{path}: write in [sweep], for example, training.seed = [0, 1]"])
    values = {f"{part}.{key}": v for part, keys in sweep.items() for key, v in keys.items()}
    for dotted, choices in values.items():
        if not isinstance(choices, list):
            raise ConfigError([f"{path}: sweep.{dotted}: must be a list of values"])
    try:
        chosen = grids.combinations(values)
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from None
    return [{"name": grids.run_name(one), **unflatten(one)} for one in chosen], values


def presets(directory: Path = PRESET_DIR) -> dict[str, Preset]:
    """The presets that come with the project, by name."""
    return {path.stem: load_preset(path) for path in sorted(directory.glob("*.toml"))}


def find_preset(name_or_file: str, directory: Path = PRESET_DIR) -> Preset:
    """A preset by its name, or from a `.toml` file of the user's. Raises ConfigError."""
    if name_or_file.endswith(".toml"):
        return load_preset(Path(name_or_file))
    names = sorted(path.stem for path in directory.glob("*.toml"))
    if name_or_file not in names:
        raise ConfigError(
            [f"unknown preset {name_or_file!r}; choose one of {', '.join(names)}, or a .toml file"]
        )
    return load_preset(directory / f"{name_or_file}.toml")
