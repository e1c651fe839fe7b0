"""Downloads from a server on this machine, and what can go wrong with them."""

import contextlib
import errno
import gc
import gzip
import os
import sys
import threading
import time
from collections import namedtuple
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from bnviz import __main__, data, fetch, images, sources
from bnviz.fetch import FetchError
from bnviz.settings import DataConfig
from bnviz.ui import data_sets

from . import fakes

images.make_torchvision_importable()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirror(tmp_path, monkeypatch, rng):
    """A server with small archives of the real layout, known to torchvision and to us. Returns the
    folder that it serves, and the expanded files by data set."""
    from torchvision.datasets import CIFAR10, FashionMNIST

    contents = {"fashion_mnist": fakes.fashion(rng), "cifar10": fakes.cifar(rng)}
    for dataset, files in contents.items():
        fakes.known_as(monkeypatch, dataset, files)
    served = fakes.write(tmp_path / "served", contents["fashion_mnist"], gzipped=True)
    packed = fakes.tar(contents["cifar10"], "cifar-10-batches-py")
    fakes.write(served, {"cifar-10-python.tar.gz": packed})
    with serving(partial(Quiet, directory=str(served))) as url:
        monkeypatch.setattr(FashionMNIST, "mirrors", [url])
        resources = [
            (path.name, fakes.md5(path.read_bytes())) for path in sorted(served.glob("*ubyte.gz"))
        ]
        monkeypatch.setattr(FashionMNIST, "resources", resources)
        monkeypatch.setattr(CIFAR10, "url", f"{url}cifar-10-python.tar.gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", fakes.md5(packed))
        yield served, contents


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10"])
def test_a_download_is_there_whole_and_loads(cache, mirror, dataset):
    _, contents = mirror
    assert not sources.is_here(dataset)
    assert fetch.fetch(dataset) == cache
    assert sources.is_here(dataset)
    there = cache / sources.FILES[dataset].folder
    assert {path.name: path.read_bytes() for path in there.iterdir()} == contents[dataset]
    assert not list(cache.glob(".*"))
    loaded = data.load(DataConfig(dataset=dataset, input="grey"))
    assert len(loaded.test_images) == 10


def test_a_download_goes_where_it_is_wanted_and_harms_nothing_there(cache, mirror, tmp_path):
    raw = fakes.write(tmp_path / "mine" / "FashionMNIST" / "raw", {"notes.txt": b"mine"})
    (raw / "train-images-idx3-ubyte").write_bytes(b"half")
    assert fetch.fetch("fashion_mnist", tmp_path / "mine") == tmp_path / "mine"
    assert not cache.exists()
    assert (raw / "notes.txt").read_bytes() == b"mine"
    config = DataConfig(dataset="fashion_mnist", folder=str(tmp_path / "mine"))
    assert len(data.load(config).train_images) == 20


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("damage", ["cut", "other", "missing"])
@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10"])
def test_what_is_damaged_on_the_way_is_not_taken(cache, mirror, dataset, damage):
    served, _ = mirror
    name = "t10k-labels-idx1-ubyte.gz" if dataset == "fashion_mnist" else "cifar-10-python.tar.gz"
    whole = (served / name).read_bytes()
    if damage == "missing":
        (served / name).unlink()
    else:
        (served / name).write_bytes(whole[:-9] if damage == "cut" else gzip.compress(b"other"))
    with pytest.raises(FetchError, match=r"cannot download .*; check the network") as caught:
        fetch.fetch(dataset)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # torchvision leaves connections open
    assert not sources.is_here(dataset)
    assert list(cache.iterdir()) == []
    (served / name).write_bytes(whole)
    fetch.fetch(dataset)
    assert sources.is_here(dataset)


def test_an_interrupted_download_leaves_nothing(cache, mirror, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    from torchvision.datasets import cifar

    with monkeypatch.context() as patch:
        patch.setattr(cifar.CIFAR10, "_load_meta", interrupted)  # after all was unpacked
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("cifar10")
    assert list(cache.iterdir()) == []
    leftover = cache / ".fetching-cifar10" / "cifar-10-batches-py"  # as a killed process leaves
    fakes.write(leftover, {"data_batch_1": b"half"})
    fakes.write(leftover.parent, {"cifar-10-python.tar.gz": b"half"})
    assert not sources.is_here("cifar10")
    fetch.fetch("cifar10")
    assert sources.is_here("cifar10")


def test_a_full_disk_is_named(cache, mirror, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "disk_usage", lambda _: Usage(0, 0, 90_000_000))
        with pytest.raises(FetchError, match=r"has 90 MB free, and .* takes up to 93; make"):
            fetch.fetch("fashion_mnist")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch, "_download", full)
    with pytest.raises(FetchError, match="MB free, and downloading CIFAR-10 takes up to 511; make"):
        fetch.fetch("cifar10")
    assert list(cache.iterdir()) == []


def test_two_processes_do_not_download_the_same(cache, mirror):
    with fetch._staging("cifar10", cache), pytest.raises(FetchError, match="another process"):
        fetch.fetch("cifar10")
    fetch.fetch("cifar10")


def test_progress_counts_what_was_downloaded(cache, mirror, monkeypatch):
    reported = []
    staging = cache / ".fetching-cifar10"

    def slow(dataset, folder):
        fakes.write(folder, {"cifar-10-python.tar.gz": b"x" * 1000, "data_batch_1": b"y" * 5000})
        while not reported:
            time.sleep(0.01)
        raise RuntimeError("enough")

    monkeypatch.setattr(fetch, "_download", slow)
    with pytest.raises(FetchError, match="enough"):
        fetch.fetch("cifar10", report=reported.append)
    assert set(reported) == {1000}
    fakes.write(staging, {"cifar-10-python.tar.gz": b"x" * 70})
    assert fetch.downloaded_bytes("cifar10") == 70


def test_what_cannot_be_fetched_says_what_can(tmp_path):
    with pytest.raises(FetchError, match="'imagenet'; choose one of fashion_mnist, cifar10"):
        fetch.fetch("imagenet")
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="Not a directory; choose a folder that can be written"):
        fetch.fetch("cifar10", tmp_path / "file")


def test_the_command_prints_the_folder_or_what_is_wrong(cache, mirror):
    served, _ = mirror
    done = CliRunner().invoke(__main__.app, ["fetch", "cifar10"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{cache}\n", "")
    for path in served.iterdir():
        path.write_bytes(b"")
    done = CliRunner().invoke(__main__.app, ["fetch", "fashion_mnist"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("bnviz: cannot download Fashion-MNIST: Error downloading t10k-")
    assert done.stderr.count("\n") == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_without_a_network_the_address_is_named(cache, mirror, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    with pytest.raises(FetchError, match=r"Tried http://127.0.0.1:9/.*refused") as caught:
        fetch.fetch("fashion_mnist")
    assert str(caught.value).endswith("name their folder in data.folder")


# The page ---------------------------------------------------------------------------------------

PAGE = """
from bnviz.settings import DataConfig
from bnviz.ui import data_sets
data_sets.offer_download(DataConfig(dataset={dataset!r}, folder={folder!r}))
"""


def page(dataset="cifar10", folder=""):
    data_sets._downloads.clear()
    app = AppTest.from_string(PAGE.format(dataset=dataset, folder=folder), default_timeout=60)
    return app.run()


def until(app, condition):
    deadline = time.monotonic() + 60
    while not condition(app):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        app.run()
        assert not app.exception
    return app


def command(monkeypatch, code):
    monkeypatch.setattr(data_sets, "COMMAND", (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", ""), ("folder", "/x"), ("cifar10", "/x")]
)
def test_nothing_is_offered_where_nothing_helps(cache, dataset, folder):
    assert len(page(dataset, folder).main) == 0


def test_the_page_downloads_shows_how_far_and_ends(cache, monkeypatch):
    command(
        monkeypatch,
        "import os, pathlib, sys, time\n"
        "cache = pathlib.Path(os.environ['BNVIZ_CACHE']); cache.mkdir()\n"
        "(cache / '.fetching-cifar10').mkdir()\n"
        "(cache / '.fetching-cifar10' / 'x.tar.gz').write_bytes(b'x' * 42_000_000)\n"
        "while not (cache / 'go').exists(): time.sleep(0.05)\n"
        "(cache / sys.argv[1]).touch()\n"
        "(cache / 'cifar-10-python.tar.gz').touch()\n",
    )
    app = page()
    assert "CIFAR-10 is not here yet. It is a download of 170 MB." in app.info[0].value
    app.button[0].click().run()
    until(app, lambda app: [p.proto.text[-12:] for p in app.get("progress")] == ["42 of 170 MB"])
    assert not app.button
    (cache / "go").touch()
    until(app, lambda app: len(app.main) == 0)
    assert (cache / "cifar10").exists()  # the command got the name of the data set


def test_the_page_says_why_a_download_failed(cache, monkeypatch):
    command(monkeypatch, "import sys; sys.exit('a warning\\nbnviz: no <b>network</b>; try again')")
    app = page()
    app.button[0].click().run()
    until(app, lambda app: len(app.error))
    assert app.error[0].value == "no \\<b\\>network\\</b\\>; try again"
    assert app.button  # once more
