"""Which software made something."""

from __future__ import annotations

import platform
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def versions() -> dict[str, str]:
    """Of bnviz, Python, PyTorch and the operating system."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    return {
        "bnviz": tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"],
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "platform": platform.platform(),
    }
