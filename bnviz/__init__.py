"""bnviz: an interactive dashboard for internal covariate shift (Ioffe & Szegedy, 2015).

import bnviz

run = bnviz.open_run("runs/20260131-235959-figure1-with-bn-1a2b3c")
run.percentiles(layer="hidden3", unit=7)  # pandas.DataFrame

for record in bnviz.train(bnviz.RunConfig()):
    ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnviz.config import RunConfig
    from bnviz.store import Run, open_run
    from bnviz.training import train

__all__ = ["Run", "RunConfig", "open_run", "train"]

_HOMES = {
    "Run": "bnviz.store",
    "RunConfig": "bnviz.config",
    "open_run": "bnviz.store",
    "train": "bnviz.training",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the dashboard opens without loading torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bnviz' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
