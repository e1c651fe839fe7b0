import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnviz import grids
from bnviz.config import ConfigError
from bnviz.presets import load_preset, presets


@given(
    st.dictionaries(
        st.sampled_from(["a.x", "a.y", "b.z"]), st.lists(st.integers(), min_size=1, unique=True)
    )
)
def test_combinations_are_the_cartesian_product(values):
    count = 1
    for choices in values.values():
        count *= len(choices)
    if count > grids.MAX_RUNS:
        with pytest.raises(ValueError, match="a sweep has at most 500"):
            grids.combinations(values)
        return
    found = [tuple(one.values()) for one in grids.combinations(values)]
    assert found == list(itertools.product(*values.values()))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a.b": []}, "a.b: give at least one value"),
        ({"a.b": [1, 2, 1]}, "a.b: a value is there twice"),
        ({"a.b": list(range(501))}, "501 runs: a sweep has at most 500"),
    ],
)
def test_what_is_no_grid_is_said(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        grids.combinations(values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.01, 0.1,1", [0.01, 0.1, 1]),
        ("none, batch", ["none", "batch"]),
        ("[100, 100], [3]", [[100, 100], [3]]),
        ("__import__('os')", ["__import__('os')"]),
        ("1 = 2", ["1 = 2"]),
    ],
)
def test_typed_values(text, values):
    assert grids.parse_values(text) == values


@pytest.mark.parametrize("text", ["", "1,,2", ",", " "])
def test_values_that_are_missing_are_said(text):
    with pytest.raises(ValueError, match="write values with commas between them"):
        grids.parse_values(text)


def test_a_run_is_named_after_its_settings():
    settings = {"model.normalization": "none", "optimizer.learning_rate": 0.1, "training.seed": 2}
    assert grids.run_name(settings) == "without-bn-lr0.1-seed2"
    assert grids.run_name({"model.hidden": [3, 2]}) == "hidden3x2"


def test_a_sweep_preset_has_a_run_for_each_combination(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "training.steps = 7\n[sweep]\nmodel.normalization = ['none', 'batch']\n"
        "optimizer.learning_rate = [0.1, 1.0]\n"
    )
    preset = load_preset(file)
    assert preset.sweep == ("model.normalization", "optimizer.learning_rate")
    assert list(preset.runs) == [
        "without-bn-lr0.1",
        "without-bn-lr1.0",
        "with-bn-lr0.1",
        "with-bn-lr1.0",
    ]
    assert {config.training.steps for config in preset.runs.values()} == {7}
    rates = [config.optimizer.learning_rate for config in preset.runs.values()]
    assert rates == [0.1, 1.0, 0.1, 1.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[sweep]\ntraining.seed = 3", "sweep.training.seed: must be a list of values"),
        ("[sweep]\nseed = [3]", r"write in \[sweep\], for example"),
        ("sweep = 3", r"write in \[sweep\], for example"),
        ("[sweep]\ntraining.seed = []", "training.seed: give at least one value"),
        ("[sweep]\ntraining.sead = [1]", "training.sead: unknown key"),
        ("[sweep]\ntraining.seed = [-1]", "training.seed"),
        ("[sweep]\ntraining.seed = [1]\n[[runs]]\nname = 'x'", "give either"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_words(tmp_path, text, sentence):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_preset(file)


def test_the_projects_sweeps_are_whole_grids():
    swept = {name: preset for name, preset in presets().items() if preset.sweep}
    assert set(swept) == {
        "batch-sweep",
        "bn-placement",
        "dropout",
        "l2",
        "lr-sweep",
        "normalizations",
        "normalizations-mlp",
        "sigmoid-relu",
        "std-sweep",
    }
    for preset in swept.values():
        assert 4 <= len(preset.runs) <= 20
        assert "paper" in preset.why
        kinds = {c.model.normalization for c in preset.runs.values()}
        assert kinds >= ({"batch"} if preset.name == "bn-placement" else {"none", "batch"})
