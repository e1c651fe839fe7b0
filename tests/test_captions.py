import pytest

from bnviz import captions, plots, store
from bnviz.config import RunConfig
from bnviz.store import Run
from bnviz.trace import TraceWriter


@pytest.fixture
def run(tmp_path):
    """Runs that have a configuration and nothing else."""

    def make(name, **overrides):
        directory = tmp_path / f"20260101-000000-{name}"
        directory.mkdir()
        made = Run(directory)
        settings = {path.replace("__", "."): value for path, value in overrides.items()}
        store.write_config(made.paths, RunConfig().replace(settings))
        return made

    return make


def test_labels_say_what_sets_runs_apart(run):
    plain = run("a-abc123", model__normalization="none")
    fast = run("b-abc124", optimizer__learning_rate=0.5)
    assert captions.labels([plain, run("c-abc125")]) == ["Without BN", "With BN"]
    assert captions.labels([plain, fast]) == [
        "Without BN, learning rate 0.15",
        "With BN, learning rate 0.5",
    ]
    assert captions.labels([]) == []


def test_where_too_much_sets_runs_apart_they_are_called_what_they_were_started_as(run):
    many = {"model__dropout": 0.4, "optimizer__l2": 1e-4, "data__shuffling": "between_shards"}
    plain = run("figure2-inception-abc123", model__normalization="none", **many)
    fast = run("figure2-bn-x5-abc124", optimizer__learning_rate=0.9)
    assert captions.labels([plain, fast]) == ["inception", "bn-x5"]
    again = run("figure2-bn-x5-seed1-abc125", optimizer__learning_rate=0.9, training__seed=1)
    assert captions.labels([plain, fast, again]) == [
        "inception, seed 0", "bn-x5, seed 0", "bn-x5, seed 1",
    ]  # fmt: skip
    slow = run("figure2-bn-x5-abc126")
    assert captions.labels([plain, fast, slow])[1:] == ["bn-x5 (abc124)", "bn-x5 (abc126)"]


def test_equal_runs_are_told_apart_by_their_ids(run):
    runs = [run("a-abc123"), run("b-abc124")]
    assert captions.labels(runs) == ["With BN (abc123)", "With BN (abc124)"]


def test_settings_that_all_runs_share_are_told_and_only_those(run):
    runs = [run("a", training__seed=3), run("b", training__seed=3, optimizer__learning_rate=0.5)]
    text = captions.shared_settings(runs)
    assert text == "nonlinearity sigmoid, init std 0.05, batch size 60, seed 3"
    assert "input grey" in captions.shared_settings([run("c", data__input="grey")])


def test_the_probe_is_told_as_it_is(run):
    plain, normalized = run("a", model__normalization="none"), run("b")
    fixed = "Percentiles over a fixed sample of 500 test examples"
    assert captions.probe([plain]) == f"{fixed}."
    own = f"{fixed}, BN normalizing by that sample's own statistics."
    assert captions.probe([plain, normalized]) == own
    assert "its running statistics" in captions.probe([run("c", trace__bn_mode="running")])
    renorm = run("e", model__normalization="batch_renorm")
    assert captions.probe([normalized, renorm]) == (
        f"{fixed}, normalization by that sample's own statistics (batch renormalization corrects "
        "these by its running ones)."
    )
    assert captions.probe([run("f", model__normalization="layer")]) == f"{fixed}."
    other = run("d", trace__probe="minibatch")
    assert "the next minibatch of 60, another at each step" in captions.probe([other])
    assert "in different ways" in captions.probe([plain, other])


def test_a_learning_rate_that_was_changed_is_told_with_its_run_and_step(run):
    changed, kept = run("a", model__normalization="none"), run("b")
    writer = TraceWriter(changed.paths)
    writer.add_event(step=1200, name="learning_rate", value=0.02, wall_time_s=1.0)
    writer.flush()
    said = "Learning rate changed while training: Without BN: 0.02 from step 1,200 on."
    assert captions.rate_changes([changed, kept]) == said
    assert captions.about([changed, kept]).endswith(said)
    assert captions.rate_changes([kept]) == ""
    first, second = plots.compared([changed, kept])
    assert first.settings["learning rate"] == "0.02 from step 1,200 on."
    assert second.settings["learning rate"] == "not changed"
