"""ImageNet's path: large images read from the disk while a network trains."""

import gc
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bnviz import inception, jobs, models, run_here, sources
from bnviz.augmentation import augmented
from bnviz.config import ConfigError, RunConfig
from bnviz.data import DataError, Minibatches
from bnviz.images import make_torchvision_importable
from bnviz.presets import presets
from bnviz.probabilities import probabilities
from bnviz.records import Metrics, Percentiles
from bnviz.settings import DataConfig, ModelConfig
from bnviz.status import State
from bnviz.store import StoreError, open_run
from bnviz.stream import StreamedImages, centre_crop, many_crops
from bnviz.trainer import Trainer
from bnviz.training import proceed, train

from .conftest import stop_all

CPU = torch.device("cpu")


def photograph(random, hue, width=500, height=375):
    """A noisy picture of a colour, of the usual size of ImageNet's."""
    small = random.normal(0, 40, (height // 25, width // 25, 3)) + hue
    image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two classes: 20 training and 6 validation images, upright and wide."""
    folder = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for number in range(count):
            name, hue = (("n01440764", (200, 60, 60)), ("n02102040", (60, 60, 200)))[number % 2]
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            size = (500, 375) if number % 3 else (333, 500)
            photograph(random, hue, *size).save(place / f"{name}_{number}.JPEG", quality=90)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may spoil."""
    copy = tmp_path / "data"
    for path in whole.rglob("*.JPEG"):
        target = copy / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return copy


def config(folder, **changes):
    base = {
        "data.dataset": "imagenet",
        "data.folder": str(folder),
        "data.input": "colour",
        "data.image_size": 64,
        "data.crop_area": 0.3,
        "data.flip": True,
        "data.distortion": 0.3,
        "data.loaders": 1,
        "model.kind": "small_inception",
        "model.nonlinearity": "relu",
        "model.initialization": "he",
        "optimizer.learning_rate": 0.05,
        "training.steps": 6,
        "training.batch_size": 4,
        "training.evaluations": 2,
        "trace.records": 2,
        "trace.probe_size": 6,
        "trace.layers": ["conv1", "5b_3x3"],
    }
    return RunConfig().replace({**base, **changes})


def order(config, examples=20, seed=0):
    return Minibatches(examples, config.training.batch_size, seed, CPU)


def spoil(folder, split="train", number=0):
    """Cut an image of the first class short; returns its path."""
    path = sorted((folder / split / "n01440764").iterdir())[number]
    content = path.read_bytes()
    path.unlink()  # not the original, which is linked
    path.write_bytes(content[: len(content) // 2])
    return path


# Reading ----------------------------------------------------------------------------------------


def test_a_minibatch_is_a_function_of_seed_and_step_whoever_reads_it(whole):
    batches = []
    for loaders in (1, 3):
        own = config(whole, **{"data.loaders": loaders})
        stream = StreamedImages(own, CPU)
        batches.append([stream.examples(step, order(own)) for step in range(5)])
    for (images, labels), (again, same) in zip(*batches, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    later = StreamedImages(own, CPU).examples(3, order(own))
    assert torch.equal(later[0], batches[0][3][0])
    other = StreamedImages(own.replace({"training.seed": 1}), CPU).examples(3, order(own))
    assert not torch.equal(other[0], later[0])


def test_the_examples_are_those_of_the_order(whole):
    own = config(whole)
    stream = StreamedImages(own, CPU)
    labels = [0] * 10 + [1] * 10  # by class, as they are listed
    for step in range(5):
        _, found = stream.examples(step, order(own))
        assert found.tolist() == [labels[i] for i in order(own)[step]]


def test_the_same_step_again_reads_nothing(whole):
    own = config(whole)
    stream = StreamedImages(own, CPU)
    first = stream.examples(0, order(own))
    assert stream.examples(0, order(own))[0] is first[0]


def test_training_images_are_torchvisions_crops_distorted(whole):
    make_torchvision_importable()
    from torchvision.transforms import v2

    own = config(whole)
    images, _ = StreamedImages(own, CPU).examples(0, order(own))
    assert images.shape == (4, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    paths = [p for name in sorted(os.listdir(whole / "train"))
             for p in sorted((whole / "train" / name).iterdir())]  # fmt: skip
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(64, scale=(0.3, 1), ratio=(3 / 4, 4 / 3), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    torch.manual_seed(int(np.random.SeedSequence([0, 0, 1]).generate_state(1)[0]))
    expected = torch.stack([crop(Image.open(paths[i])) for i in order(own)[0]]).float() / 255
    distortion = DataConfig(input="colour", dataset="cifar10", distortion=0.3)
    assert torch.equal(images, augmented(expected, distortion, seed=0, step=0))


def test_test_images_are_single_central_crops(whole):
    make_torchvision_importable()
    from torchvision.transforms.v2 import functional

    own = config(whole)
    [(images, labels)] = StreamedImages(own, CPU).test_chunks()
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    first = sorted((whole / "val" / "n01440764").iterdir())[0]
    resized = functional.resize(Image.open(first), [73], antialias=True)  # 64 * 256 / 224
    expected = functional.pil_to_tensor(functional.center_crop(resized, [64, 64]))
    assert torch.equal(images[0], expected.float() / 255)
    assert torch.equal(StreamedImages(own, CPU).probe(np.array([3, 0]))[1], images[0])


def test_many_crops_are_googlenets_144(whole):
    make_torchvision_importable()
    from torchvision.transforms.v2 import functional

    wide = Image.open(sorted((whole / "val" / "n01440764").iterdir())[1])
    data = config(whole, **{"data.image_size": 224}).data
    found = many_crops(data)(wide)
    assert found.shape == (144, 3, 224, 224)
    assert torch.equal(found[1], found[0].flip(2))
    resized = functional.pil_to_tensor(functional.resize(wide, [256], antialias=True))
    assert torch.equal(found[0], resized[:, :224, :224])  # left square, its upper left corner
    far = resized.shape[2] - 256
    assert torch.equal(found[24], resized[:, :224, far : far + 224])  # the right square's
    centre = resized[:, 16:240, far // 2 + 16 : far // 2 + 240]
    assert torch.equal(found[12 + 8], centre)
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    off = many_crops(data)(tall)[0].mT.int() - found[0].int()  # by Pillow's rounding
    assert off.abs().max() <= 2
    assert off.abs().float().mean() < 0.1
    assert centre_crop(data)(wide).shape == (3, 224, 224)


def test_grey_images_are_luminance(whole):
    own = config(whole, **{"data.input": "grey", "data.distortion": 0.0})
    images, _ = StreamedImages(own, CPU).examples(0, order(own))
    assert images.shape == (4, 1, 64, 64)


def test_a_subset_is_of_the_training_images(whole):
    stream = StreamedImages(config(whole, **{"data.examples": 8}), CPU)
    assert (stream.train_count, stream.test_count, stream.classes) == (8, 6, 2)


def test_shards_have_examples_of_all_classes(whole):
    """The images of a folder are listed by class."""
    for shuffling in ("within_shards", "between_shards"):
        own = config(whole, **{"data.shuffling": shuffling, "data.shard_size": 10})
        stream = StreamedImages(own, CPU)
        assert sorted(stream._train.labels) == [0] * 10 + [1] * 10
        assert 2 <= sum(stream._train.labels[:10]) <= 8
        again = StreamedImages(own, CPU)
        assert (stream._train.paths == again._train.paths).all()


# Training ---------------------------------------------------------------------------------------


def test_the_real_network_trains_on_images_of_real_size(whole, tmp_path):
    own = presets()["imagenet-bn-x5"].runs["run"].replace(
        {"data.folder": str(whole), "training.steps": 2, "training.batch_size": 4,
         "training.evaluations": 1, "training.precision": "float32", "trace.records": 1,
         "trace.probe_size": 4}
    )  # fmt: skip
    run = run_here(own, tmp_path)
    assert run.status.state is State.COMPLETED, run.status.error
    assert run.status.summary["train_examples"] == 20
    assert set(run.metrics("test")["step"]) == {0, 2}
    rows = run.percentiles("5b_3x3", unit=3)
    assert list(rows["step"]) == [0, 2]
    assert rows["p15"].iloc[0] < rows["p85"].iloc[0]
    with pytest.raises(StoreError, match="no layer '5a_3x3'"):
        run.percentiles("5a_3x3")
    assert run.inference() is None


def test_it_learns(whole):
    own = config(whole, **{"training.steps": 25, "data.distortion": 0.0})
    tests = [r for r in train(own) if isinstance(r, Metrics) and r.split == "test"]
    assert tests[-1].accuracy == 1


def test_a_continued_run_ends_as_if_it_had_not_stopped(whole):
    own = config(whole)

    def ends(trainer):
        records = list(proceed(trainer))
        return [(r.loss, r.accuracy) for r in records if isinstance(r, Metrics)][-2:], {
            r.layer: r.grid.tolist() for r in records if isinstance(r, Percentiles)
        }

    first = Trainer(own)
    expected = ends(first)
    half = Trainer(own)
    for _ in proceed(half):
        if half.step >= 2:
            state = half.state()
            break
    later = Trainer(own)
    later.restore(state)
    assert ends(later) == expected


def test_predictions_are_by_one_crop_and_by_many(whole):
    trainer = Trainer(config(whole, **{"data.image_size": 64, "trace.predictions": True}))
    found = probabilities(trainer)
    assert found.crops == 144
    assert found.single.shape == found.many.shape == (6, 2)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    trainer.model.eval()
    crops, _ = next(iter(trainer.source.test_crops()))
    with torch.no_grad():
        expected = trainer.model(crops[0]).softmax(1).mean(0)
    assert np.allclose(found.many[0], expected, atol=1e-5)


def test_mixed_precision_trains_and_measures_in_float32(whole):
    own = config(whole, **{"training.precision": "mixed", "data.distortion": 0.0,
                           "training.steps": 25})  # fmt: skip
    records = list(train(own))
    tests = [r for r in records if isinstance(r, Metrics) and r.split == "test"]
    assert tests[-1].accuracy > 0.9
    plain = [r for r in train(own.replace({"training.precision": "float32"}))
             if isinstance(r, Metrics) and r.split == "train"]  # fmt: skip
    mixed = [r for r in records if isinstance(r, Metrics) and r.split == "train"]
    assert mixed[0].loss != plain[0].loss
    assert mixed[0].loss == pytest.approx(plain[0].loss, rel=0.05)
    trainer = Trainer(own)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_the_processes_that_read_end_with_the_run(whole, tmp_path):
    def children():
        return set(psutil.Process().children(recursive=True))

    before = children()
    run_here(config(whole, **{"data.loaders": 2}), tmp_path)
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and children() - before:
        time.sleep(0.1)
    assert not children() - before


# Bad input --------------------------------------------------------------------------------------


def problem(folder):
    return sources.data_problems(config(folder).data)


def test_a_missing_folder(tmp_path):
    [sentence] = problem(tmp_path / "nowhere")
    assert sentence.startswith("data.folder: there is no folder")
    assert "train/CLASS/ and val/CLASS/" in sentence
    assert sources.data_problems(DataConfig(dataset="imagenet")) == [
        "data.folder is empty: name the folder that holds the images, in train/CLASS/ and "
        "val/CLASS/"
    ]


def test_archives_that_are_not_unpacked(tmp_path, folder):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"")
    [sentence] = problem(tmp_path)
    assert "no folder train and no folder val" in sentence
    assert "ILSVRC2012_img_train.tar is there, and must be unpacked" in sentence
    (folder / "train" / "n09999999.tar").write_bytes(b"")
    [sentence] = problem(folder)
    assert "train holds archives: n09999999.tar; unpack each" in sentence


def test_a_class_without_images(folder):
    (folder / "train" / "n09999999").mkdir()
    [sentence] = problem(folder)
    assert "train: no images in n09999999; put some there" in sentence


def test_half_the_training_classes(folder):
    for path in (folder / "train" / "n02102040").iterdir():
        path.unlink()
    (folder / "train" / "n02102040").rmdir()
    found = " ".join(problem(folder))
    assert "val has n02102040, which" in found
    assert "has the one class n01440764" in found


def test_validation_images_without_folders(folder):
    for path in list((folder / "val").rglob("*.JPEG")):
        path.rename(folder / "val" / path.name)
    for place in [p for p in (folder / "val").iterdir() if p.is_dir()]:
        place.rmdir()
    assert "val holds images without folders of their classes" in problem(folder)[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_image_ends_the_run_in_words_where_it_is_refused(folder, tmp_path, split):
    path = spoil(folder, split, number=1)
    run = run_here(config(folder, **{"training.steps": 12}), tmp_path / "runs")
    assert run.status.state is State.FAILED
    said = run.status.error.message
    assert said.startswith(f"cannot read the image {path}: ")
    assert said.endswith("replace or remove it, or choose data.unreadable = skip")


def test_truncated_images_are_counted_named_and_skipped(folder, tmp_path, capsys):
    bad = {str(spoil(folder, "train", 1)), str(spoil(folder, "val", 1))}
    own = config(folder, **{"data.unreadable": "skip", "training.steps": 12})
    run = run_here(own, tmp_path / "runs")
    assert run.status.state is State.COMPLETED, run.status.error
    assert run.status.summary["unreadable_images"] == 2
    said = capsys.readouterr().out  # a worker's goes to the log of the run
    assert all(
        said.count(f"cannot read the image {path}: image file is trunc") == 1 for path in bad
    )
    [(images, _)] = StreamedImages(own, CPU).test_chunks()
    assert len(images) == 5  # accuracies are over those that can be read


def test_a_file_that_is_no_image_is_skipped_too(folder, tmp_path):
    (folder / "train" / "n01440764" / "aa.jpg").write_text("no image")
    [sentence] = problem(folder)
    assert "not images that can be read" in sentence
    own = config(folder, **{"data.unreadable": "skip", "training.steps": 12})
    assert sources.problems(own) == []
    run = run_here(own, tmp_path / "runs")
    assert run.status.state is State.COMPLETED
    assert run.status.summary["unreadable_images"] == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_where_no_image_can_be_read_that_is_said(folder, tmp_path, split):
    for path in list((folder / split).rglob("*.JPEG")):
        path.unlink()
        path.write_text("no image")
    run = run_here(config(folder, **{"data.unreadable": "skip"}), tmp_path / "runs")
    assert run.status.state is State.FAILED
    assert "images can be read, such as" in run.status.error.message


def test_names_that_are_no_text_are_told(folder, tmp_path):
    bad = os.fsencode(folder / "train" / "n01440764") + b"/\xff\xfe.JPEG"
    with open(bad, "wb") as file:
        file.write(b"no image")
    own = config(folder, **{"training.steps": 12})
    assert "\\xff\\xfe.JPEG" in sources.data_problems(own.data)[0]
    with open(bad, "wb") as file:  # whole at the start, and not later
        file.write(sorted((folder / "train" / "n01440764").glob("n*"))[0].read_bytes()[:3000])
    run = run_here(own, tmp_path / "runs")
    assert run.status.state is State.FAILED
    assert "\\xff\\xfe.JPEG" in run.status.error.message


def test_the_place_of_a_skipped_training_image_is_taken_by_another(folder):
    spoil(folder, "train", 1)
    own = config(folder, **{"data.unreadable": "skip"})
    stream = StreamedImages(own, CPU)
    for step in range(5):  # an epoch
        images, labels = stream.examples(step, order(own))
        assert len(images) == len(labels) == 4
    assert len(stream.unreadable) == 1


def test_a_folder_of_small_images_skips_too(folder, tmp_path):
    (folder / "val").rename(folder / "test")
    bad = spoil(folder, "train", 1)
    own = RunConfig().replace(
        {"data.dataset": "folder", "data.folder": str(folder), "data.input": "grey",
         "training.steps": 2, "training.batch_size": 4, "training.evaluations": 1,
         "trace.probe_size": 4, "model.hidden": [4]}
    )  # fmt: skip
    run = run_here(own, tmp_path / "runs")
    assert run.status.state is State.FAILED
    assert str(bad) in run.status.error.message
    run = run_here(own.replace({"data.unreadable": "skip"}), tmp_path / "runs")
    assert run.status.state is State.COMPLETED
    assert run.status.summary["unreadable_images"] == 1


def test_images_smaller_than_the_crop_are_enlarged_and_counted(folder, tmp_path):
    random = np.random.default_rng(1)
    photograph(random, (200, 60, 60), 50, 75).save(folder / "train" / "n01440764" / "a.JPEG")
    run = run_here(config(folder, **{"training.steps": 12}), tmp_path / "runs")
    assert run.status.state is State.COMPLETED
    assert run.status.summary["enlarged_images"] == 1
    assert run.status.summary["unreadable_images"] == 0


def test_more_examples_than_there_are(whole):
    for setting in ({"training.batch_size": 21}, {"trace.probe_size": 7}):
        assert "choose at most" in sources.problems(config(whole, **setting))[0]


def test_too_little_memory_for_the_batch_is_said_before_anything_starts(whole, root, monkeypatch):
    class Free:
        available = 5e8

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Free)
    large = config(whole, **{"model.kind": "inception", "data.image_size": 224,
                             "training.batch_size": 20})  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        jobs.submit(large, root, "run")
    assert str(caught.value) == (
        "training.batch_size = 20: its activations need about 0.9 GB of memory, and 0.5 GB are "
        "free; choose at most 11, or end other programs"
    )
    assert not root.exists() or not list(root.glob("2*"))


def test_the_memory_that_is_foreseen_is_that_of_the_activations():
    """Of the large network, against what autograd keeps."""
    plan = inception.plan("inception", "summed")
    network = models.build(
        ModelConfig(kind="inception", nonlinearity="relu"), (3, 96, 96), 10, seed=0
    )
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    parameters = {p.data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.rand(2, 3, 96, 96))
    measured = sum(size for at, size in kept.items() if at not in parameters) / 2
    assert plan.activations(96) * 4 * sources.COPIES_WITH_BN == pytest.approx(measured, rel=0.25)


def test_a_run_can_be_started_watched_and_cancelled_as_any_other(whole, root):
    own = config(whole, **{"training.steps": 100_000, "data.loaders": 2})
    run_id = jobs.submit(own, root, "imagenet")
    run = open_run(root / run_id)
    try:
        deadline = time.monotonic() + 60
        while run.status.step < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert run.status.step >= 3, run.status
        jobs.cancel(run)
        assert jobs.wait_until_finished(run, 20) is State.CANCELLED
    finally:
        stop_all(root)


def test_a_run_whose_processes_are_all_asked_to_end_is_paused(whole, root):
    """As where the machine goes down."""
    own = config(whole, **{"training.steps": 100_000, "data.loaders": 2})
    run = open_run(root / jobs.submit(own, root, "imagenet"))
    try:
        deadline = time.monotonic() + 60
        while run.status.step < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(os.getpgid(run.status.pid), signal.SIGTERM)
        while run.status.state is State.RUNNING and time.monotonic() < deadline:
            time.sleep(0.1)
        assert run.status.state is State.PAUSED
        assert run.status.reason == "the system asked its process to end"
    finally:
        stop_all(root)


def test_what_needs_all_images_in_memory_is_refused_in_words(whole):
    with pytest.raises(DataError, match="are read while training and not held in memory"):
        _ = Trainer(config(whole)).data


# Presets ----------------------------------------------------------------------------------------


def test_the_presets_are_those_of_the_twin_with_the_papers_rates():
    twins = presets()["figure2"].runs | presets()["figure4"].runs
    large = {
        name.removeprefix("imagenet-"): config
        for name, preset in presets().items()
        if name.startswith("imagenet-") and name != "imagenet-ensemble"
        for config in preset.runs.values()
    } | presets()["imagenet-ensemble"].runs
    assert set(large) == set(twins)
    same = ("model.normalization", "model.nonlinearity", "model.response_normalization",
            "model.dropout", "model.conv_scale", "model.bn_per", "optimizer.l2",
            "optimizer.momentum", "data.shuffling", "data.distortion",
            "training.batch_size")  # fmt: skip
    for name, own in large.items():
        twin = twins[name].flat()
        assert own.optimizer.learning_rate * 20 == pytest.approx(twin["optimizer.learning_rate"])
        assert {path: own.flat()[path] for path in same} == {path: twin[path] for path in same}
        assert own.model.kind == "inception"
        assert own.data.crop_area == 0.08
    slow, fast = (large[name].optimizer.decay_steps for name in ("inception", "bn-x5"))
    assert slow / fast == pytest.approx(6, rel=1e-4)
    assert slow == round(8 * 1_281_167 / 32)  # 8 epochs of ILSVRC2012
