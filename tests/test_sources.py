"""What is wrong with the data of a run is said before anything starts."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from bnviz import folders, jobs, sources, worker
from bnviz.config import ConfigError, RunConfig
from bnviz.data import ImageData
from bnviz.plots import compared
from bnviz.store import list_run_ids, open_run

from . import fakes
from .conftest import small
from .test_cli import refused


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mine(tmp_path, rng):
    return fakes.images(tmp_path / "mine", rng)


def config(folder, **overrides):
    few = {"training__batch_size": 4, "trace__probe_size": 6}
    return small(**{"data__dataset": "folder", "data__folder": str(folder), **few, **overrides})


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def remove(folder):
    empty(folder)
    folder.rmdir()


def add(folder):
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "0.png")


FAULTS = {
    "folder": (
        lambda mine: os.rename(mine, mine.with_name("other")),
        "data.folder: there is no folder {mine}; name the one that holds the images in "
        "train/CLASS/ and test/CLASS/",
    ),
    "split": (
        lambda mine: os.rename(mine / "test", mine / "testing"),
        "data.folder: {mine} has no folder test; it must hold the images in train/CLASS/ and "
        "test/CLASS/",
    ),
    "empty class": (
        lambda mine: empty(mine / "train" / "dog"),
        "{mine}/train: no images in dog; put some there (their names end in .jpg, .jpeg, .png, "
        ".ppm, .bmp, .pgm, .tif, .tiff, .webp), or remove the folder",
    ),
    "one class": (
        lambda mine: [remove(mine / split / "dog") for split in ("train", "test")],
        "{mine}/train has the one class cat; there must be two at least, each a folder of images",
    ),
    "no test": (
        lambda mine: [remove(mine / "test" / name) for name in ("cat", "dog")],
        "{mine}/test has no class; it must hold a folder of images for each",
    ),
    "unknown class": (
        lambda mine: [add(mine / "test" / name) for name in "abcde"],
        "{mine}/test has a, b, c and 2 more, which {mine}/train has not; add training images, or "
        "remove the folder",
    ),
    "no image": (
        lambda mine: (mine / "test" / "cat" / "1.png").write_text("text"),
        "not images that can be read: {mine}/test/cat/1.png; replace or remove them",
    ),
    "pixels": (
        lambda mine: Image.fromarray(np.ones((4, 4), np.float32)).save(mine / "train/cat/x.tif"),
        "not images that can be read: {mine}/train/cat/x.tif (its pixels are floating-point "
        "numbers); replace or remove them",
    ),
}


def test_a_good_folder_has_no_problem(mine):
    assert sources.problems(config(mine)) == []
    assert sources.is_here("folder", str(mine))
    assert not sources.is_here("folder", str(mine / "train"))
    assert not sources.is_here("folder")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_folder_is_one_sentence(mine, fault):
    damage, sentence = FAULTS[fault]
    damage(mine)
    assert sources.problems(config(mine)) == [sentence.format(mine=mine)]


def test_a_folder_that_may_not_be_read_is_named(mine, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources.os, "scandir", denied)
    [sentence] = sources.problems(config(mine))
    assert sentence.startswith(f"data.folder: cannot read {mine}/train: Permission denied; give")


@pytest.mark.parametrize(
    ("setting", "value", "there"),
    [
        ("training.batch_size", 13, "12 training"),
        ("data.examples", 13, "12 training"),
        ("trace.probe_size", 7, "6 test"),
    ],
)
def test_more_than_there_is_cannot_be_asked_for(mine, setting, value, there):
    wrong = config(mine).replace({setting: value})
    most = there.split()[0]
    assert sources.problems(wrong) == [
        f"{setting} = {value}: {mine} has {there} images; choose at most {most}"
    ]


def test_no_more_headers_are_read_than_promised(mine, monkeypatch):
    for number in range(500):
        os.link(mine / "train" / "cat" / "0.png", mine / "train" / "cat" / f"more{number}.png")
    opened = []
    monkeypatch.setattr(
        folders.Image, "open", lambda path: opened.append(path) or Image.new("L", (1, 1))
    )
    assert sources.problems(config(mine)) == []
    assert 100 < len(opened) <= folders.HEADERS


@pytest.mark.parametrize("dataset", ["folder", "cifar10", "mnist"])
def test_what_does_not_fit_into_memory_is_refused(mine, monkeypatch, rng, dataset):
    contents = fakes.cifar(rng)
    fakes.known_as(monkeypatch, "cifar10", contents)
    fakes.write(sources.default_cache() / "cifar-10-batches-py", contents)
    free = {"folder": 10_000, "cifar10": 300e6, "mnist": 200e6}[dataset]
    monkeypatch.setattr(sources.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    wanted = config(mine) if dataset == "folder" else small(data__dataset=dataset)
    [sentence] = sources.problems(wanted)
    assert f"{dataset}: its images need " in sentence
    assert f"{free / 1e9:.1f} GB are free" in sentence


def test_what_is_not_downloaded_says_how(monkeypatch, tmp_path, rng):
    for dataset, title in (("fashion_mnist", "Fashion-MNIST"), ("cifar10", "CIFAR-10")):
        assert not sources.is_here(dataset)
        assert sources.problems(small(data__dataset=dataset)) == [
            f"{title} is not here yet; download it with python -m bnviz fetch {dataset}, or name "
            "a folder that holds its files in data.folder"
        ]
    [sentence] = sources.problems(small(data__dataset="cifar10", data__folder=str(tmp_path)))
    assert "the files of CIFAR-10 are not in there (data_batch_1, " in sentence
    fakes.write(tmp_path / "FashionMNIST" / "raw", fakes.fashion(rng), gzipped=True)
    assert sources.is_here("fashion_mnist", str(tmp_path))
    assert all(sources.is_here(dataset) for dataset in ("mnist", "synthetic"))
    assert [sources.download_size(name) > 1e7 for name in ("mnist", "folder", "cifar10")] == [
        False, False, True,
    ]  # fmt: skip


# Starting ---------------------------------------------------------------------------------------


def test_nothing_is_made_for_a_run_without_its_data(root):
    with pytest.raises(ConfigError, match="Fashion-MNIST is not here yet"):
        jobs.submit(small(data__dataset="fashion_mnist"), root, "test")
    assert not root.exists()


def test_the_command_line_says_it_before_the_first_run_starts(root, tmp_path):
    text = '[[runs]]\nname = "a"\n[[runs]]\nname = "b"\n[runs.data]\ndataset = "cifar10"\n'
    (tmp_path / "two.toml").write_text(text)
    said = refused("run", str(tmp_path / "two.toml"), root=root)
    assert said.startswith("bnviz: CIFAR-10 is not here yet; download it with")
    assert list_run_ids(root) == []


def test_the_page_says_it_and_starts_none(root):
    script = """
import streamlit as st
from bnviz.config import RunConfig
from bnviz.ui import frame, runs

def start():
    other = RunConfig().replace({"data.dataset": "cifar10"})
    assert runs.start({"one": RunConfig(), "other": other}) == []

frame.title("Test")
st.button("Start", on_click=start)
"""
    app = AppTest.from_string(script, default_timeout=60).run()
    app.button[0].click().run()
    assert not app.exception
    assert "CIFAR\\-10 is not here yet" in app.error[0].value
    assert list_run_ids(root) == []


def test_a_retry_says_it_too(root, digits):
    run = worker.run_here(small(training__steps=1), root, train_on=digits)
    with pytest.raises(ConfigError, match="CIFAR-10 is not here yet"):
        jobs.retry(run, {"data.dataset": "cifar10"})
    assert list_run_ids(root) == [run.run_id]


def test_a_run_names_its_folder_from_the_root(root, mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    run = worker.run_here(config("mine", training__steps=3), root)
    assert run.status.state == "COMPLETED"
    assert run.config.data.folder == str(mine)
    monkeypatch.setenv("HOME", str(mine.parent))
    assert sources.problems(config("~/mine")) == []


# Epochs -----------------------------------------------------------------------------------------


def test_a_run_says_how_many_examples_it_trains_on(root, mine, digits):
    folder = worker.run_here(config(mine, training__steps=1), root)
    assert folder.status.summary["train_examples"] == 12
    own = worker.run_here(small(training__steps=1), root, train_on=digits)
    assert [run.steps_per_epoch for run in compared([folder, own])] == [12 / 4, 600 / 60]


def test_an_example_count_that_cannot_be_is_not_believed(root, mine):
    run = worker.run_here(config(mine, training__steps=1), root)
    text = run.paths.status.read_text()
    for wrong in ("0", "-3", "1e3", '"12"', "true", "10000000000000000"):
        run.paths.status.write_text(
            text.replace('"train_examples": 12', f'"train_examples": {wrong}')
        )
        assert np.isnan(compared([open_run(run.paths.directory)])[0].steps_per_epoch)


def test_own_images_are_described_by_no_data_set(root, digits):
    assert isinstance(digits, ImageData)
    assert RunConfig().train_examples == 60_000


def test_runs_of_one_data_set_take_one_look_at_it(mine, monkeypatch):
    looked = []
    monkeypatch.setattr(
        sources, "look", lambda data, usual=sources.look: looked.append(data) or usual(data)
    )
    sources.check([config(mine, training__seed=seed) for seed in range(6)])
    assert len(looked) == 1
    with pytest.raises(ConfigError, match="choose at most"):
        sources.check([config(mine), config(mine, training__batch_size=1_000)])
