import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnviz.config import ConfigError, RunConfig, parse_setting
from bnviz.presets import find_preset, load_preset, presets


def problems(overrides):
    with pytest.raises(ConfigError) as caught:
        RunConfig().replace(overrides)
    return caught.value.problems


def test_defaults_are_the_papers():
    config = RunConfig()
    assert config.model.hidden == (100, 100, 100)
    assert config.model.nonlinearity == "sigmoid"
    assert (config.training.steps, config.training.batch_size) == (50_000, 60)
    assert config.data.input == "binary"
    assert (config.trace.probe, config.trace.bn_mode) == ("heldout", "batch")


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, 1e9, "fast", None, True])
def test_a_learning_rate_that_cannot_be_is_refused_in_one_sentence(value):
    [problem] = problems({"optimizer.learning_rate": value})
    assert problem == (
        f"optimizer.learning_rate = {value!r}: must be a number above 0 and at most 100"
    )


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("training.steps", 0, "a whole number from 1 to 100,000,000"),
        ("training.steps", 2.5, "a whole number from 1 to 100,000,000"),
        ("training.seed", -1, "a whole number from 0 to 2,147,483,647"),
        ("data.dataset", "svhn", "one of mnist, fashion_mnist"),
        ("model.nonlinearity", "tanhh", "one of sigmoid, relu"),
        ("model.hidden", [], "a list of 1 to 20 whole numbers from 1 to 4,096"),
        ("model.hidden", [0], "a list of 1 to 20 whole numbers from 1 to 4,096"),
        ("model.init_std", 0, "a number above 0 and at most 10"),
        ("training.device", "tpu", "one of auto, cpu, cuda"),
    ],
)
def test_each_fault_names_path_value_and_what_is_allowed(path, value, allowed):
    [problem] = problems({path: value})
    assert problem.startswith(f"{path}")
    assert repr(value) in problem or value == [0]
    assert allowed in problem


def test_unknown_keys_are_refused_with_the_known_ones():
    [problem] = problems({"model.depth": 3})
    assert problem.startswith("model.depth: unknown key; model has kind, inception_channels, stem")
    [problem] = problems({"modle.hidden": 3})
    assert problem == ("modle: unknown key; a run has data, model, optimizer, training, trace")
    assert "must be a table" in problems({"model": 3})[0]


def test_all_faults_are_reported_together():
    found = problems({"training.steps": 0, "optimizer.learning_rate": -1, "model.x": 1})
    assert len(found) == 3


def test_what_does_not_fit_together_is_refused():
    assert "at least 2" in problems({"training.batch_size": 1})[0]
    assert RunConfig().replace({"training.batch_size": 1, "model.normalization": "none"})
    assert "60,000 training examples" in problems({"training.batch_size": 60_001})[0]
    assert "10,000 held-out examples" in problems({"trace.probe_size": 10_001})[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"model.normalization": "group", "model.groups": 3},
            "model.groups = 3: does not divide the 100 units of hidden1; choose a number that",
        ),
        (
            {"model.normalization": "group", "model.groups": 100},
            "one value of hidden1 is normalized alone, and has no variance",
        ),
        ({"model.normalization": "layer", "model.hidden": [9, 1]}, "one value of hidden2"),
        ({"model.normalization": "instance"}, "an mlp has one value a unit, which has no variance"),
        (
            {"model.normalization": "whitening", "training.batch_size": 1},
            "training.batch_size = 1: whitening needs a batch of at least 2",
        ),
        (
            {"model.normalization": "layer", "model.bn_per": "activation"},
            "model.bn_per = 'activation': layer normalization has no such form",
        ),
        (
            {"model.kind": "cnn", "model.kernel": 28},
            "model.kernel = 28: conv1 sees images of 28×28 and needs 29×29 for its pooling",
        ),
        (
            {"model.kind": "cnn", "model.channels": [4, 4, 4]},
            "conv3 sees images of 4×4 and needs 6×6 for its pooling; choose a smaller kernel",
        ),
        (
            {"optimizer.kind": "adam", "optimizer.momentum": 0.9},
            "optimizer.momentum = 0.9: adam takes none; choose 0",
        ),
        ({"optimizer.nesterov": True}, "it is a form of momentum, which is 0"),
        ({"data.input": "colour"}, "mnist has no colours; choose binary or grey"),
        (
            {"data.examples": 60_001},
            "mnist has 60,000 training examples; choose at most 60,000, or 0 for all",
        ),
        (
            {"data.examples": 50},
            "training.batch_size = 60: data.examples leaves 50 training examples",
        ),
        ({"model.dropout": 1.0}, "model.dropout = 1.0: must be a number from 0 and below 1"),
        ({"optimizer.nesterov": 1}, "optimizer.nesterov = 1: must be true or false"),
        ({"data.folder": 3}, "data.folder = 3: must be text of at most 4,096 characters"),
        ({"model.channels": [0]}, "must be a list of 1 to 5 whole numbers from 1 to 512"),
    ],
)
def test_each_combination_that_cannot_be_is_one_sentence(overrides, sentence):
    [problem] = problems(overrides)
    assert sentence in problem


def test_what_has_no_effect_hinders_nothing():
    assert RunConfig().replace({"model.kernel": 31, "model.groups": 7, "data.shard_size": 10**6})
    per_activation = {"model.bn_per": "activation", "model.kind": "cnn"}
    for kind in ("batch", "none"):
        assert RunConfig().replace({**per_activation, "model.normalization": kind})


@given(
    lr=st.floats(1e-6, 100),
    steps=st.integers(1, 10**7),
    hidden=st.lists(st.integers(1, 4096), min_size=1, max_size=20),
    seed=st.integers(0, 2**31 - 1),
    bn=st.sampled_from(["none", "batch"]),
)
def test_a_configuration_survives_json(lr, steps, hidden, seed, bn):
    config = RunConfig().replace(
        {
            "optimizer.learning_rate": lr,
            "training.steps": steps,
            "model.hidden": hidden,
            "training.seed": seed,
            "model.normalization": bn,
        }
    )
    assert RunConfig.parse_json(config.model_dump_json()) == config


@given(st.text(max_size=30))
def test_no_text_in_place_of_a_configuration_crashes(text):
    with contextlib.suppress(ConfigError):
        RunConfig.parse_json(text)


def test_settings_are_read_as_toml_or_text():
    assert parse_setting("training.steps=2000") == ("training.steps", 2000)
    assert parse_setting("model.normalization=none") == ("model.normalization", "none")
    assert parse_setting("model.hidden=[10, 20]") == ("model.hidden", [10, 20])
    with pytest.raises(ConfigError, match="PATH=VALUE"):
        parse_setting("steps")


def test_differences_name_only_what_was_changed():
    assert RunConfig().differences() == {}
    assert RunConfig().replace({"training.seed": 3}).differences() == {"training.seed": 3}


def test_figure1_differs_in_normalization_alone():
    runs = presets()["figure1"].runs
    plain, normalized = runs["without-bn"], runs["with-bn"]
    assert plain.model.normalization == "none"
    assert plain.replace({"model.normalization": "batch"}) == normalized
    assert plain.training.steps == 50_000


def test_an_unknown_preset_is_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"unknown preset 'figure9'; choose one of .*figure1"):
        find_preset("figure9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model", "not valid TOML"),
        ("title = 3", "title and why must be text"),
        ("runs = 3", "runs must be"),
        ('[[runs]]\nname = "a"\n[[runs]]\nname = "a"', "name of its own"),
        ("[model]\nwidth = 3", "model.width: unknown key"),
    ],
)
def test_a_bad_preset_file_is_answered_in_words(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_preset(path)


def test_a_missing_preset_file_is_answered_in_words(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        find_preset(str(tmp_path / "none.toml"))


def test_a_preset_file_without_runs_is_one_run(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nsteps = 5\n")
    [config] = find_preset(str(path)).runs.values()
    assert config.training.steps == 5


def test_a_configuration_of_the_first_version_is_what_it_was():
    text = """{"schema_version": 1, "data": {"dataset": "mnist", "input": "grey"}, "model": {
      "kind": "mlp", "hidden": [20, 10], "nonlinearity": "relu", "normalization": "none",
      "init_std": 0.1, "bn_epsilon": 1e-3, "bn_momentum": 0.2}, "optimizer": {"kind": "sgd",
      "learning_rate": 0.5}, "training": {"steps": 9, "batch_size": 60, "seed": 3, "device": "cpu",
      "evaluations": 2}, "trace": {"records": 4, "probe": "heldout", "probe_size": 50,
      "bn_mode": "batch"}}"""
    config = RunConfig.parse_json(text)
    assert config.differences() == {
        "data.input": "grey",
        "model.hidden": (20, 10),
        "model.nonlinearity": "relu",
        "model.normalization": "none",
        "model.init_std": 0.1,
        "model.bn_epsilon": 1e-3,
        "model.bn_momentum": 0.2,
        "optimizer.learning_rate": 0.5,
        "training.steps": 9,
        "training.seed": 3,
        "training.device": "cpu",
        "training.evaluations": 2,
        "trace.records": 4,
        "trace.probe_size": 50,
    }
