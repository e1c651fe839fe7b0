"""bnviz: an interactive dashboard for internal covariate shift (Ioffe & Szegedy, 2015).

import bnviz

run = bnviz.open_run("runs/20260131-235959-figure1-with-bn-1a2b3c")
run.percentiles(layer="hidden3", unit=7)  # pandas.DataFrame

for record in bnviz.train(bnviz.RunConfig()):
    ...

run = bnviz.run_here(bnviz.RunConfig(), train_on=bnviz.data.ImageData(...))  # your own images
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnviz import data
    from bnviz.config import RunConfig
    from bnviz.store import Run, open_run
    from bnviz.training import train
    from bnviz.worker import run_here

__all__ = ["Run", "RunConfig", "data", "open_run", "run_here", "train"]

_HOMES = {
    "Run": "bnviz.store",
    "RunConfig": "bnviz.config",
    "open_run": "bnviz.store",
    "run_here": "bnviz.worker",
    "train": "bnviz.training",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the dashboard opens without loading torch."""
    from importlib import import_module

    if name == "data":
        return import_module("bnviz.data")
    if name not in _HOMES:
        raise AttributeError(f"module 'bnviz' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
