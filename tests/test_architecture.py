"""Which way imports point: a module imports from its own level or lower, never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEVELS = {
    "bnviz.percentiles": 0,
    "bnviz.config": 0,
    "bnviz.presets": 0,
    "bnviz.schedules": 0,
    "bnviz.settings": 0,
    "bnviz.sources": 0,
    "bnviz.folders": 0,
    "bnviz.synthetic": 0,
    "bnviz.schema": 0,
    "bnviz.status": 0,
    "bnviz.downsample": 0,
    "bnviz.paper": 0,
    "bnviz.grids": 0,
    "bnviz.drift": 0,
    "bnviz.bias_growth": 0,
    "bnviz.accuracies": 0,
    "bnviz.agenda": 0,
    "bnviz.predictions": 0,
    "bnviz.inception": 0,
    "bnviz.together": 0,
    "bnviz.data": 1,
    "bnviz.fetch": 1,
    "bnviz.images": 1,
    "bnviz.augmentation": 1,
    "bnviz.models": 1,
    "bnviz.models.inception": 1,
    "bnviz.models.layers": 1,
    "bnviz.models.network": 1,
    "bnviz.models.normalization": 1,
    "bnviz.probe": 1,
    "bnviz.records": 1,
    "bnviz.cuda_graph": 1,
    "bnviz.observations": 1,
    "bnviz.steps": 1,
    "bnviz.evaluation": 1,
    "bnviz.identities": 1,
    "bnviz.stack": 1,
    "bnviz.trainer": 1,
    "bnviz.training": 1,
    "bnviz.crops": 1,
    "bnviz.probabilities": 1,
    "bnviz.stream": 1,
    "bnviz.inference": 1,
    "bnviz.onnx_file": 1,
    "bnviz.files": 0,
    "bnviz.checkpoint": 1,
    "bnviz.parts": 2,
    "bnviz.store": 2,
    "bnviz.trace": 2,
    "bnviz.processes": 2,
    "bnviz.queue": 2,
    "bnviz.about": 2,
    "bnviz.jobs": 2,
    "bnviz.reporter": 3,
    "bnviz.recorder": 3,
    "bnviz.worker": 3,
    "bnviz.captions": 3,
    "bnviz.progress": 3,
    "bnviz.figures": 3,
    "bnviz.versions": 0,
    "bnviz.tables": 3,
    "bnviz.plots": 3,
    "bnviz.webpage": 3,
    "bnviz.figure_files": 3,
    "bnviz.report": 3,
    "bnviz.export": 3,
    "bnviz.bundle": 3,
    "bnviz.unbundle": 3,
    "bnviz.index": 3,
    "bnviz.style": 3,
    "bnviz.comparisons": 3,
    "bnviz.distributions": 3,
    "bnviz.ensembles": 3,
    "bnviz.systems": 3,
    "bnviz.system_figures": 3,
    "bnviz.sweeps": 3,
    "bnviz.identity_figures": 3,
    "bnviz.bias_figures": 3,
    "bnviz.ui": 4,
    "bnviz.ui.bias_growth": 4,
    "bnviz.ui.chart": 4,
    "bnviz.ui.choices": 4,
    "bnviz.ui.controls": 4,
    "bnviz.ui.compare_page": 4,
    "bnviz.ui.data_sets": 4,
    "bnviz.ui.distributions_page": 4,
    "bnviz.ui.exports": 4,
    "bnviz.ui.frame": 4,
    "bnviz.ui.identities": 4,
    "bnviz.ui.inference": 4,
    "bnviz.ui.lab": 4,
    "bnviz.ui.look": 4,
    "bnviz.ui.method_page": 4,
    "bnviz.ui.groups": 4,
    "bnviz.ui.paper_ensemble": 4,
    "bnviz.ui.paper_page": 4,
    "bnviz.ui.paper_runs": 4,
    "bnviz.ui.paper_systems": 4,
    "bnviz.ui.runs_page": 4,
    "bnviz.ui.settings_form": 4,
    "bnviz.ui.sweeps_page": 4,
    "bnviz.ui.runs": 4,
    "bnviz.ui.text": 4,
    "bnviz.__main__": 4,
    "bnviz": 5,
    "app": 5,
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for p in [ROOT / "app.py", *sorted((ROOT / "bnviz").rglob("*.py"))]}


def imports(name):
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            base = node.module or ""
            found |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base
                for alias in node.names
            }
    return found


def test_every_module_has_a_level():
    assert set(FILES) == set(LEVELS)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_downwards(name):
    for imported in imports(name) & set(FILES):
        assert LEVELS[imported] <= LEVELS[name], f"{name} imports {imported}, which is above it"


def test_there_is_no_circle():
    TopologicalSorter({name: imports(name) & set(FILES) - {"bnviz"} for name in FILES}).prepare()


def packages(name):
    return {imported.split(".")[0] for imported in imports(name)}


def test_streamlit_is_only_in_the_page_and_torch_only_in_training_and_worker():
    assert {n for n in FILES if "streamlit" in packages(n)} <= {
        "app", *(n for n in FILES if n.startswith("bnviz.ui"))
    }  # fmt: skip
    assert {n for n in FILES if packages(n) & {"torch", "torchvision"}} <= {
        "bnviz.worker", "bnviz.recorder", *(n for n in FILES if LEVELS[n] == 1)
    }  # fmt: skip


def test_training_and_store_meet_in_the_worker_alone():
    both = {
        name
        for name in FILES
        if imports(name) & {"bnviz.training", "bnviz.trainer"}
        and imports(name) & {"bnviz.store", "bnviz.trace"}
    }
    assert both == {"bnviz", "bnviz.worker", "bnviz.recorder"}


def test_figures_read_no_files_and_know_no_store():
    assert not packages("bnviz.figures") & {"os", "io", "pathlib", "pyarrow"}
    assert "bnviz.store" not in imports("bnviz.figures")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("bnviz.ui.lab", "torch"),
        ("bnviz.__main__", "torch"),
        ("bnviz.__main__", "streamlit"),
        ("bnviz.worker", "streamlit"),
        ("bnviz.training", "streamlit"),
    ],
)
def test_what_is_not_needed_is_not_loaded(module, unwanted):
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nothing_is_unpickled_or_evaluated():
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"eval", "exec", "pickle.load", "pickle.loads"}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), name
        assert "pickle" not in packages(name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_modules_are_of_readable_length(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 400
