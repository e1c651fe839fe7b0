"""Predictions of finished runs, crops, and ensembles of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bnviz import crops, ensembles, predictions, run_here
from bnviz.config import RunConfig
from bnviz.data import ImageData
from bnviz.evaluation import Stopped, evaluate
from bnviz.images import make_torchvision_importable
from bnviz.predictions import Predictions, PredictionsError
from bnviz.probabilities import probabilities
from bnviz.status import State
from bnviz.store import StoreError
from bnviz.trainer import Trainer


@pytest.fixture(scope="module")
def functional():
    make_torchvision_importable()
    from torchvision.transforms.v2 import functional

    return functional


@pytest.fixture
def data(mnist):
    return ImageData(mnist.train_images[:600], mnist.train_labels[:600],
                     mnist.test_images[:300], mnist.test_labels[:300])  # fmt: skip


CONFIG = RunConfig().replace(
    {"model.hidden": [20], "training.steps": 30, "training.evaluations": 1, "trace.records": 1,
     "trace.predictions": True, "data.input": "grey"}
)  # fmt: skip


def made_up(seed=0, examples=200, classes=12):
    random = np.random.default_rng(seed)
    single, many = random.dirichlet(np.ones(classes), (2, examples)).astype(np.float32)
    labels = np.random.default_rng(99).integers(0, classes, examples).astype(np.int32)
    return Predictions(7, 24, labels, single, many)


# Crops ------------------------------------------------------------------------------------------


def test_crops_of_small_images_are_four_scales_of_six(functional):
    images = torch.rand(2, 1, 28, 28)
    found = list(crops.crops(images, flip=False))
    assert len(found) == 24
    assert all(crop.shape == images.shape for crop in found)
    for i, large in enumerate((29, 30, 31, 32)):
        resized = functional.resize(images, [large, large], antialias=False)
        of_scale = found[6 * i : 6 * i + 6]
        expected = functional.five_crop(resized, [28, 28])  # corners, then the centre
        for own, theirs in zip(of_scale[:4], expected[:4], strict=True):
            assert torch.allclose(own, theirs, atol=1e-6)
        middle = (large - 28) // 2
        assert torch.equal(of_scale[4], resized[:, :, middle : middle + 28, middle : middle + 28])
        assert torch.allclose(of_scale[5], functional.resize(resized, [28, 28], antialias=False))


def test_mirrors_double_them():
    images = torch.rand(2, 3, 32, 32)
    plain, found = list(crops.crops(images, False)), list(crops.crops(images, True))
    assert len(found) == 48
    for i, crop in enumerate(plain):
        assert torch.equal(found[2 * i], crop)
        assert torch.equal(found[2 * i + 1], crop.flip(3))


def test_large_images_have_googlenets_scales():
    """The first crop of each scale is the upper left corner, so its slope tells the scale."""
    slope = torch.linspace(0, 1, 224).expand(1, 3, 224, 224)
    corners = list(crops.crops(slope, flip=False))[::6]
    steps = [float(crop[0, 0, 50].diff()[10:100].mean()) for crop in corners]
    assert [1 / (223 * step) * 224 for step in steps] == pytest.approx(
        [256, 288, 320, 352], abs=0.2
    )


def test_probabilities_are_those_of_the_network(data):
    trainer = Trainer(CONFIG, data)
    found = probabilities(trainer)
    assert found.step == 0
    assert found.crops == 24
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(data.test_images).softmax(1).numpy()
        many = [trainer.model(c).softmax(1).numpy() for c in crops.crops(data.test_images, False)]
    np.testing.assert_allclose(found.single, expected, atol=1e-6)
    np.testing.assert_allclose(found.many, np.mean(many, axis=0), atol=1e-6)
    assert (found.labels == data.test_labels.numpy()).all()
    accuracy = evaluate(trainer.model, data.test_images, data.test_labels)[1]
    assert ensembles.error(found.single, found.labels, 1) == pytest.approx(1 - accuracy)


def test_they_can_be_stopped(data):
    with pytest.raises(Stopped):
        probabilities(Trainer(CONFIG, data), stop=lambda: True)


# Files ------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "predictions.parquet"
    written = made_up()
    predictions.write(path, written)
    read = predictions.read(path)
    assert (read.step, read.crops) == (7, 24)
    for name in ("labels", "single", "many"):
        assert np.array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    with pytest.raises(FileNotFoundError):
        predictions.read(tmp_path / "none")


def edited(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, path)


def about(path, **changes):
    table = pq.read_table(path)
    known = json.loads(table.schema.metadata[predictions.ABOUT])
    metadata = {predictions.ABOUT: json.dumps({**known, **changes})}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_small_file_that_would_unfold_to_more_than_fits_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "predictions.parquet"
    predictions.write(path, made_up(examples=200, classes=12))
    monkeypatch.setattr(predictions, "MOST_VALUES", 2_399)
    monkeypatch.setattr(pq.ParquetFile, "read", None)  # it is told by what the file says of itself
    with pytest.raises(PredictionsError, match="more probabilities than a data set has"):
        predictions.read(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"PAR1"),
        lambda path: pq.write_table(pa.table({"a": [1]}), path),
        lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata({}), path),
        lambda path: pq.write_table(pq.read_table(path).slice(0, 0), path),
        lambda path: edited(path, label=pa.array([12] * 200, pa.int32())),
        lambda path: edited(path, label=pa.array([None] * 200, pa.int32())),
        lambda path: edited(path, single=pa.array([[0.5]] * 200)),
        lambda path: edited(path, single=pa.array([0.5] * 200)),
        lambda path: edited(path, many=predictions._lists(np.full((200, 12), np.nan, np.float32))),
        lambda path: edited(path, many=predictions._lists(np.full((200, 12), 0.2, np.float32))),
        lambda path: about(path, step=-1),
        lambda path: about(path, crops=1),
        lambda path: about(path, crops="many"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "predictions.parquet"
    predictions.write(path, made_up())
    damage(path)
    with pytest.raises(PredictionsError):
        predictions.read(path)


def test_a_run_stores_what_its_last_network_predicts(tmp_path, data):
    run = run_here(CONFIG, tmp_path, train_on=data)
    assert run.status.state is State.COMPLETED
    found = run.predictions()
    assert found.step == 30
    right = 1 - ensembles.error(found.single, found.labels, 1)
    assert right == pytest.approx(run.status.test_accuracy)
    run.paths.predictions.write_bytes(b"no")
    with pytest.raises(StoreError, match=r"predictions\.parquet is damaged; start the run again"):
        run.predictions()


def test_without_the_setting_there_are_none(tmp_path, data):
    config = CONFIG.replace({"trace.predictions": False})
    assert run_here(config, tmp_path, train_on=data).predictions() is None


# Ensembles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 3, 5])
def test_errors_are_those_of_sorting(top):
    own = made_up()
    ranked = np.argsort(-own.single, axis=1, kind="stable")[:, :top]
    expected = 1 - np.mean([label in row for label, row in zip(own.labels, ranked, strict=True)])
    assert ensembles.error(own.single, own.labels, top) == pytest.approx(expected)


def test_of_equal_probabilities_the_first_classes_count():
    even = np.full((3, 10), 0.1)
    assert ensembles.error(even, np.array([0, 4, 5]), 5) == pytest.approx(1 / 3)
    assert ensembles.error(even, np.array([0, 4, 5]), 1) == pytest.approx(2 / 3)


def test_the_table_has_members_their_mean_and_the_ensemble():
    members = {name: made_up(seed) for seed, name in enumerate("abc")}
    table = ensembles.table(members)
    assert list(table["model"]) == ["a", "b", "c", "mean member", "ensemble"] * 2
    assert list(table["crops"]) == [1] * 5 + [24] * 5
    assert list(table["networks"]) == [1, 1, 1, 1, 3] * 2
    single = table.iloc[:5]
    assert single["top1"].iloc[3] == pytest.approx(single["top1"].iloc[:3].mean())
    labels = members["a"].labels
    mean = np.mean([member.many for member in members.values()], axis=0)
    assert table["top5"].iloc[9] == pytest.approx(ensembles.error(mean, labels, 5))
    assert (table["top5"] <= table["top1"]).all()


def test_members_must_be_of_the_same_examples():
    other = made_up(1)
    moved = Predictions(7, 24, np.roll(other.labels, 1), other.single, other.many)
    with pytest.raises(ensembles.MembersError, match="different test examples"):
        ensembles.table({"a": made_up(), "b": moved})
    with pytest.raises(ensembles.MembersError, match="no members"):
        ensembles.table({})
