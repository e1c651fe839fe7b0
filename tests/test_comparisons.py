import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnviz import comparisons
from bnviz.comparisons import Compared
from bnviz.config import RunConfig


def run(run_id="r1", accuracies=(0.1, 0.5, 0.9), steps=(0, 100, 200), label="With BN", **settings):
    config = RunConfig().replace({path.replace("__", "."): v for path, v in settings.items()})
    n = len(steps)
    rows = {"step": steps, "split": ["test"] * n, "accuracy": accuracies, "loss": np.arange(n) / 2}
    rows |= {"wall_time_s": np.array(steps) / 50, "learning_rate": 0.1}
    return Compared(run_id, label, pd.DataFrame(rows), config.flat(), steps_per_epoch=1000)


def test_a_curve_is_what_was_recorded_against_step_epoch_and_time():
    for x_axis, scale in (("step", 1), ("epoch", 1 / 1000), ("wall time", 1 / 50)):
        curve = comparisons.curve(run(), "test accuracy", x_axis)
        np.testing.assert_allclose(curve.x, np.array([0, 100, 200]) * scale)
        np.testing.assert_array_equal(curve.y, [0.1, 0.5, 0.9])
    assert len(comparisons.curve(run(), "train loss", "step").y) == 0
    np.testing.assert_array_equal(comparisons.curve(run(), "test loss", "step").y, [0, 0.5, 1])


def test_runs_that_differ_in_their_seed_alone_are_a_group():
    a = run("a", training__seed=1)
    b = run("b", training__seed=2)
    c = run("c", training__seed=1, optimizer__learning_rate=0.5)
    groups = comparisons.over_seeds([a, c, b])
    assert [[r.run_id for r in group] for group in groups] == [["a", "b"], ["c"]]


def test_mean_and_band_span_the_group_where_all_have_recorded():
    a = run("a", (0.1, 0.5, 0.9), label="With BN, seed 1", training__seed=1)
    b = run("b", (0.3, 0.6), steps=(0, 100), label="With BN, seed 2", training__seed=2)
    curve = comparisons.mean_curve([a, b], "test accuracy", "step")
    assert curve.label == "With BN, mean of 2 seeds"
    np.testing.assert_array_equal(curve.x, [0, 100])
    np.testing.assert_allclose(curve.y, [0.2, 0.55])
    np.testing.assert_allclose(curve.low, [0.1, 0.5])
    np.testing.assert_allclose(curve.high, [0.3, 0.6])
    time = comparisons.mean_curve([a, b], "test accuracy", "wall time")
    np.testing.assert_allclose(time.x, [0, 2])


@given(
    st.lists(st.floats(-1e3, 1e3) | st.just(np.nan), min_size=1, max_size=30), st.floats(0, 0.99)
)
def test_smoothing_is_the_bias_corrected_moving_average(values, weight):
    values = np.array(values)
    expected, total, norm = [], 0.0, 0.0
    for value in values:
        if not np.isnan(value):
            total = weight * total + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        expected.append(np.nan if np.isnan(value) else total / norm)
    np.testing.assert_allclose(comparisons.smooth(values, weight), expected, rtol=1e-6, atol=1e-6)


def test_steps_to_an_accuracy_and_the_speed_up():
    slow = run("slow", (0.1, 0.5, 0.92), steps=(0, 1000, 3100))
    fast = run("fast", (0.1, 0.93, 0.91), steps=(0, 310, 600))
    never = run("never", (0.1, 0.2, 0.3))
    assert comparisons.steps_to(slow, 0.9) == 3100
    table = comparisons.steps_table([slow, fast, never], 0.9, "slow").set_index("run_id")
    assert table["steps"].tolist() == [3100, 310, pd.NA]
    assert table["speed_up"].tolist()[:2] == [1.0, 10.0]
    assert np.isnan(table.loc["never", "speed_up"])
    assert table.loc["fast", "best_accuracy"] == 0.93
    assert table.loc["fast", "best_at_step"] == 310
    assert comparisons.steps_table([fast], 0.9, "never")["speed_up"].isna().all()


def test_steps_of_a_run_without_records_are_unknown():
    empty = run("none", (), steps=())
    table = comparisons.steps_table([empty], 0.9, "none")
    assert table.loc[0, ["steps", "best_accuracy", "best_at_step"]].isna().all()
    assert comparisons.describe([comparisons.curve(empty, "test loss", "step")], "test loss") == (
        "With BN: no points yet."
    )


def test_differences_are_the_settings_that_differ():
    a = run("a", label="A", optimizer__learning_rate=0.5)
    b = run("b", label="B", model__hidden=[3, 2])
    table = comparisons.differences([a, b])
    assert table.to_dict("index") == {
        "model.hidden": {"A": "100 – 100 – 100", "B": "3 – 2"},
        "optimizer.learning_rate": {"A": "0.5", "B": "0.15"},
    }
    assert comparisons.differences([a]).empty


def test_the_figure_holds_the_curves_smoothed_and_raw_and_bands():
    a = run("a", (0.1, 0.5, 0.9), training__seed=1)
    b = run("b", (0.3, 0.6, 0.8), training__seed=2)
    plain = run("c", (0.2, 0.2, 0.3), label="Without BN", model__normalization="none")
    curves = [comparisons.mean_curve([a, b], "test accuracy", "step")]
    curves.append(comparisons.curve(plain, "test accuracy", "step"))
    figure = comparisons.figure(curves, "test accuracy", "step", target=0.75).figure
    band, mean, single = figure.data
    np.testing.assert_allclose(band.y, [0.3, 0.6, 0.9, 0.8, 0.5, 0.1])
    np.testing.assert_allclose(mean.y, [0.2, 0.55, 0.85])
    np.testing.assert_allclose(single.y, [0.2, 0.2, 0.3])
    assert single.line.dash == "dash"
    assert figure.layout.shapes[0].y0 == 0.75
    smooth = comparisons.figure(curves[1:], "test accuracy", "step", smoothing=0.5).figure
    raw, smoothed = smooth.data
    assert raw.opacity < 1
    np.testing.assert_allclose(raw.y, [0.2, 0.2, 0.3])
    np.testing.assert_allclose(smoothed.y, comparisons.smooth(np.array([0.2, 0.2, 0.3]), 0.5))
    logarithmic = comparisons.figure(curves[1:], "test accuracy", "step", log_x=True).figure
    assert list(logarithmic.data[0].x) == [100, 200]  # step 0 has no logarithm


def test_long_curves_are_downsampled_and_say_so():
    n = 10_000
    long = run("long", np.linspace(0, 1, n), steps=range(n))
    figure = comparisons.figure(
        [comparisons.curve(long, "test accuracy", "step")], "a", "step"
    ).figure
    assert len(figure.data[0].x) <= 2_000
    drawn = len(figure.data[0].x)
    assert figure.layout.xaxis.title.text == f"step ({drawn:,} of 10,000 points)"


@pytest.mark.parametrize("measure", comparisons.MEASURES)
def test_nothing_to_draw_is_an_empty_figure(measure):
    figure = comparisons.figure([], measure, "step").figure
    assert len(figure.data) == 0


def test_a_run_that_has_recorded_nothing_does_not_hide_the_others():
    a = run("a", label="With BN, seed 1", training__seed=1)
    b = run("b", label="With BN, seed 2", training__seed=2)
    waiting = run("c", (), (), label="With BN, seed 3", training__seed=3)
    curve = comparisons.mean_curve([waiting, a, b], "test accuracy", "step")
    assert curve.label == "With BN, mean of 2 seeds"
    np.testing.assert_array_equal(curve.y, [0.1, 0.5, 0.9])
    assert len(comparisons.mean_curve([waiting], "test accuracy", "step").y) == 0


def test_repeated_runs_are_no_seeds_of_their_own():
    twice = [run(name, label=f"With BN ({name})") for name in ("aaaaaa", "bbbbbb")]
    curve = comparisons.mean_curve(twice, "test accuracy", "step")
    assert curve.label == "With BN, mean of 2 runs"


def curves(*lengths):
    return [
        comparisons.curve(
            run(f"r{n}", np.linspace(0.1, 0.9, n), np.arange(n) * 10), "test accuracy", "step"
        )
        for n in lengths
    ]


def test_the_points_in_view_are_counted_over_long_and_short_lines():
    def title(view):
        figure = comparisons.figure(curves(5_000, 100), "test accuracy", "step", view=view).figure
        return figure.layout.xaxis.title.text

    assert title((100.0, 200.0)) == "step (all 22 points in view)"
    assert title((10_000.0, 11_000.0)) == "step (all 101 points in view)"
    assert title(None).endswith(" of 5,100 points)")


def test_a_logarithmic_axis_changes_no_smoothed_value():
    for log_x in (False, True):
        figure = comparisons.figure(
            [comparisons.curve(run(), "test accuracy", "step")],
            "test accuracy",
            "step",
            smoothing=0.9,
            log_x=log_x,
        ).figure
        line = pd.Series(figure.data[-1].y, figure.data[-1].x)
        expected = comparisons.smooth(np.array([0.1, 0.5, 0.9]), 0.9)
        np.testing.assert_allclose(line[[100, 200]], expected[1:], rtol=1e-6)
        assert "at %{x:,}" in figure.data[-1].hovertemplate  # every step in full
