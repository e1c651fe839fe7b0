import numpy as np
import pytest
import torch

from bnviz import train
from bnviz.augmentation import augmented
from bnviz.config import ConfigError, RunConfig
from bnviz.data import ImageData
from bnviz.images import make_torchvision_importable
from bnviz.records import Metrics
from bnviz.settings import DataConfig
from bnviz.trainer import Trainer
from bnviz.training import proceed

GREY = {"input": "grey"}

CHANGES = (
    {"crop_area": 0.5},
    {"flip": True},
    {"distortion": 0.4},
    {"crop_area": 0.3, "flip": True},
)


@pytest.fixture(scope="module")
def functional():
    make_torchvision_importable()
    from torchvision.transforms.v2 import functional

    return functional


@pytest.fixture
def images():
    return torch.rand(8, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", CHANGES)
def test_what_is_drawn_is_a_function_of_seed_and_step(images, changes):
    config = DataConfig(**GREY, **changes)
    before = images.clone()
    first = augmented(images, config, seed=1, step=5)
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, augmented(images, config, seed=1, step=5))
    assert not torch.equal(first, augmented(images, config, seed=1, step=6))
    assert not torch.equal(first, augmented(images, config, seed=2, step=5))


def test_without_augmentation_images_stay(images):
    assert torch.equal(augmented(images, DataConfig(**GREY), 0, 0), images)


def test_mirrors_are_exact_and_about_half():
    images = torch.rand(400, 1, 6, 9)
    mirrored = augmented(images, DataConfig(**GREY, flip=True), 0, 0)
    same = torch.isclose(mirrored, images, atol=1e-5).all((1, 2, 3))
    flipped = torch.isclose(mirrored, images.flip(3), atol=1e-5).all((1, 2, 3))
    assert (same ^ flipped).all()
    assert 150 < flipped.sum() < 250


def test_crops_have_the_areas_and_aspects_that_are_asked_for():
    """Of images whose pixels tell their place."""
    side = 64
    x = (torch.arange(side) + 0.5) / side
    images = torch.stack([x.expand(side, side), x.view(-1, 1).expand(side, side)]).repeat(
        500, 1, 1, 1
    )
    crops = augmented(images, DataConfig(**GREY, crop_area=0.3), 0, 0)
    # From the slope inside, as the border of a crop is interpolated with what is outside.
    width, height = ((crops[:, axis].diff(dim=2 - axis)[:, 20:40, 20:40].mean((1, 2)) * side)
                     for axis in (0, 1))  # fmt: skip
    areas, aspects = width * height, width / height
    assert areas.min() > 0.3 - 0.01
    assert areas.max() < 1.01
    assert areas.mean() == pytest.approx(0.64, abs=0.03)
    assert aspects.max() < 4 / 3 + 0.01
    assert aspects.min() > 3 / 4 - 0.01
    centres = crops.mean((2, 3))
    assert centres.min() > 0.25
    assert centres.max() < 0.75
    assert centres.std(0).min() > 0.05


def test_distortions_are_torchvisions(images, functional):
    config = DataConfig(input="colour", dataset="cifar10", distortion=0.6)
    random = np.random.default_rng([3, 9, 1])
    factors = random.uniform(0.4, 1.6, (3, 8)).astype(np.float32)
    found = augmented(images, config, seed=3, step=9)
    for image, own, (brightness, contrast, saturation) in zip(
        images, found, factors.T, strict=True
    ):
        expected = functional.adjust_brightness(image, float(brightness))
        expected = functional.adjust_contrast(expected, float(contrast))
        expected = functional.adjust_saturation(expected, float(saturation))
        assert torch.allclose(own, expected, atol=2e-3)  # torchvision's parts of grey are .2989, …


def test_a_run_goes_on_with_the_same_crops(mnist):
    data = ImageData(mnist.train_images[:600], mnist.train_labels[:600],
                     mnist.test_images[:100], mnist.test_labels[:100])  # fmt: skip
    config = RunConfig().replace(
        {"data.input": "grey", "data.crop_area": 0.6, "data.distortion": 0.3, "model.hidden": [10],
         "training.steps": 20, "training.evaluations": 1, "trace.records": 0}
    )  # fmt: skip
    whole = [r for r in train(config, data) if isinstance(r, Metrics)]
    first = Trainer(config, data)
    for _ in proceed(first):
        if first.step == 0:
            state = first.state()
    later = Trainer(config, data)
    later.restore(state)
    again = [r for r in proceed(later) if isinstance(r, Metrics)]
    assert [r.loss for r in again][-2:] == [r.loss for r in whole][-2:]
    plain = [r for r in train(config.replace({"data.crop_area": 1.0}), data)
             if isinstance(r, Metrics)]  # fmt: skip
    assert plain[-1].loss != whole[-1].loss


def test_a_minibatch_that_is_probed_is_the_one_that_is_trained_on(mnist):
    config = RunConfig().replace(
        {"data.input": "grey", "data.crop_area": 0.6, "trace.probe": "minibatch"}
    )
    trainer = Trainer(config, mnist)
    batch = trainer.batches[0]
    first, _ = trainer.examples(batch)
    again, labels = trainer.examples(batch)
    assert torch.equal(first, again)
    assert torch.equal(labels, mnist.train_labels[batch])
    assert not torch.equal(first, mnist.train_images[batch])


def test_binary_pixels_cannot_be_augmented():
    with pytest.raises(ConfigError, match="make grey levels of it; choose grey or colour"):
        RunConfig().replace({"data.crop_area": 0.5})
