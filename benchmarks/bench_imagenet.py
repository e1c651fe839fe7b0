"""Images a second of the paper's Inception, 224 pixels, against torchvision's GoogLeNet.

    python benchmarks/bench_imagenet.py

Training (forward, backward, update) on images in memory, then reading JPEGs from the disk as
training does, which must be faster. On a GPU in mixed precision as well; on a CPU by one thread.
All take turns in one process, so that what else the machine does falls on all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, in_turns, ratio, spread
from bnviz import models
from bnviz.config import RunConfig
from bnviz.data import Minibatches
from bnviz.images import make_torchvision_importable
from bnviz.presets import presets
from bnviz.steps import make_optimizer, make_step
from bnviz.stream import StreamedImages

SIDE, CLASSES = 224, 1000
ROUNDS, CPU_BATCH, GPU_BATCH = 7, 8, 256
IMAGES = 64
"""JPEGs that are made, of the usual size of ImageNet's."""


def main() -> None:
    make_torchvision_importable()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    report = Report("imagenet")
    batch = GPU_BATCH if device.type == "cuda" else CPU_BATCH
    images = torch.rand(batch, 3, SIDE, SIDE, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    base = {name: presets()[f"imagenet-{name}"].runs["run"] for name in ("bn-x5", "inception")}
    for precision in ("float32", "mixed") if device.type == "cuda" else ("float32",):
        ways: dict[str, Callable[[], int]] = {
            "torchvision's GoogLeNet (with BN)": googlenet(device, precision, images, labels)
        }
        for name, config in base.items():
            title = {"bn-x5": "ours, with BN", "inception": "ours, without BN, with LRN"}[name]
            own = config.replace({"training.precision": precision})
            ways[title] = ours(own, device, images, labels)
        times = in_turns(ways, ROUNDS)
        reference = times["torchvision's GoogLeNet (with BN)"]
        report.table(
            f"Training, batches of {batch}, {precision}, {device.type}",
            ("network", "s an image (quartiles)", "images/s", "images/s ÷ GoogLeNet's"),
            [
                (name, spread(own, 4), f"{1 / np.median(own):.1f}", ratio(reference, own))
                for name, own in times.items()
            ],
        )
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(Path(folder))
        times = in_turns({"reading": reading(Path(folder), base["bn-x5"])}, ROUNDS)
        own = times["reading"]
        report.table(
            "Reading JPEGs of 500×375, random crops of 224, one process for each core",
            ("", "s an image (quartiles)", "images/s"),
            [("reading", spread(own, 4), f"{1 / np.median(own):.0f}")],
        )


def ours(
    config: RunConfig, device: torch.device, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], int]:
    """An update as a run makes it; returns how many images it took."""
    model = models.build(config.model, (3, SIDE, SIDE), CLASSES, seed=0).to(device).train()
    model.to(memory_format=torch.channels_last)
    step = make_step(model, make_optimizer(model, config.optimizer), config)

    def update() -> int:
        step(images, labels)
        finish(device)
        return len(images)

    return update


def googlenet(
    device: torch.device, precision: str, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], int]:
    """The same with torchvision's network, of the same memory layout and optimizer."""
    from torchvision.models import googlenet as build

    model = build(num_classes=CLASSES, aux_logits=False, init_weights=False).to(device).train()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def update() -> int:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "mixed"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finish(device)
        return len(images)

    return update


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_jpegs(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        place = folder / ("val" if number % 8 == 0 else "train") / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        large = small.resize((500, 375), Image.Resampling.BICUBIC)
        large.save(place / f"{number}.JPEG", quality=90)
    # Both splits need both classes.
    for name in ("class0", "class1"):
        (folder / "val" / name).mkdir(exist_ok=True)
        first = next((folder / "train" / name).iterdir())
        (folder / "val" / name / "first.JPEG").write_bytes(first.read_bytes())


def reading(folder: Path, config: RunConfig) -> Callable[[], int]:
    """Batches as a run reads them; returns how many images came."""
    own = config.replace(
        {"data.folder": str(folder), "data.distortion": 0.0, "training.steps": 1_000_000}
    )
    stream = StreamedImages(own, torch.device("cpu"))
    order = Minibatches(stream.train_count, own.training.batch_size, 0, torch.device("cpu"))
    step = 0

    def read() -> int:
        nonlocal step
        count = 0
        for _ in range(10):
            count += len(stream.examples(step, order)[0])
            step += 1
        return count

    read()  # what was read ahead is not counted
    return read


if __name__ == "__main__":
    main()
