import numpy as np
import pytest

from bnviz import sweeps
from bnviz.config import RunConfig
from bnviz.sweeps import Result


def result(run_id, accuracy=0.5, diverged=False, ended=True, **settings):
    config = RunConfig().replace({path.replace("__", "."): v for path, v in settings.items()})
    return Result(run_id, config.flat(), accuracy, diverged, ended)


@pytest.fixture
def results():
    """Two rates with and without BN, two seeds each; without BN the high rate diverges."""
    accuracies = {
        ("none", 0.1): (0.8, 0.9),
        ("none", 10.0): (None, 0.1),
        ("batch", 0.1): (0.95, 0.97),
        ("batch", 10.0): (0.9, 0.98),
    }
    return [
        result(
            f"{kind}{rate}{seed}",
            accuracy,
            diverged=(kind, rate) == ("none", 10.0),
            model__normalization=kind,
            optimizer__learning_rate=rate,
            training__seed=seed,
        )
        for (kind, rate), pair in accuracies.items()
        for seed, accuracy in enumerate(pair)
    ]


def test_what_is_swept_is_what_differs(results):
    assert sweeps.swept(results) == {
        "model.normalization": ["batch", "none"],
        "optimizer.learning_rate": [0.1, 10.0],
        "training.seed": [0, 1],
    }


def test_the_table_has_mean_and_span_over_seeds_without_the_diverged(results):
    table = sweeps.table(results).set_index(["model.normalization", "optimizer.learning_rate"])
    assert table.loc[("batch", 0.1)].to_dict() == pytest.approx(
        {"accuracy": 0.96, "least": 0.95, "greatest": 0.97, "runs": 2, "ended": 2, "diverged": 0}
    )
    row = table.loc[("none", 10.0)]
    assert np.isnan(row["accuracy"])
    assert (row["runs"], row["diverged"]) == (2, 2)


def test_the_figure_draws_a_line_for_each_of_the_others_and_marks_divergence(results):
    figure = sweeps.figure(results, "optimizer.learning_rate")
    lines = {trace.name: trace for trace in figure.data}
    assert set(lines) == {"without BN", "with BN", "without BN: diverged"}
    np.testing.assert_allclose(lines["with BN"].x, [0.1, 10.0])
    np.testing.assert_allclose(lines["with BN"].y, [0.96, 0.94])
    np.testing.assert_allclose(lines["with BN"].error_y.array, [0.01, 0.04])
    np.testing.assert_allclose(lines["with BN"].error_y.arrayminus, [0.01, 0.04])
    assert list(lines["without BN: diverged"].x) == [10.0]
    assert figure.layout.xaxis.type == "log"


def test_words_are_an_axis_too():
    results = [result("a", 0.3, model__nonlinearity="sigmoid")]
    results.append(result("b", 0.6, model__nonlinearity="relu"))
    figure = sweeps.figure(results, "model.nonlinearity")
    assert list(figure.data[0].x) == ["sigmoid", "relu"]
    assert figure.layout.xaxis.type is None
    lists = [result("a", 0.3, model__hidden=[3]), result("b", 0.6, model__hidden=[3, 2])]
    assert len(sweeps.figure(lists, "model.hidden").data[0].x) == 2


def test_before_the_first_accuracy_there_is_nothing_to_tell():
    results = [result("a", None, ended=False), result("b", None, training__batch_size=2)]
    assert sweeps.describe(results) == "No accuracy is known yet."
    assert sweeps.table(results)["accuracy"].isna().all()
    assert len(sweeps.figure(results, "training.batch_size").data) == 1


def test_the_description_names_the_best(results):
    assert sweeps.describe(results) == (
        "Best: test accuracy 0.9600 (with BN, learning rate 0.1). 8 of 8 runs have ended, "
        "2 diverged."
    )
