"""The parts of a run's configuration: each setting with its default, its range and its meaning.

Defaults are the paper's wherever the paper states a value (Ioffe & Szegedy 2015, Section 4.1);
what it leaves open is marked "our choice".
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from bnviz import inception


class Facts(NamedTuple):
    """What a data set holds."""

    train: int
    test: int
    channels: int
    side: int
    """Pixels of an image's height, and of its width."""


DATASETS = {
    "mnist": Facts(60_000, 10_000, 1, 28),
    "fashion_mnist": Facts(60_000, 10_000, 1, 28),
    "cifar10": Facts(50_000, 10_000, 3, 32),
    "synthetic": Facts(6_000, 1_000, 1, 28),
}
"""Known here so that a configuration is checked before a start; what is in a folder of images is
known when it is read."""

NORMALIZATIONS = {
    "none": "Without BN",
    "batch": "With BN",
    "layer": "Layer normalization",
    "group": "Group normalization",
    "instance": "Instance normalization",
    "batch_renorm": "Batch renormalization",
    "whitening": "Full whitening",
}
"""What each is called on figures. The first two are the paper's curves."""

OVER_BATCH = frozenset({"batch", "batch_renorm", "whitening"})
"""Normalizations with the statistics of a batch, so with running ones for inference."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Part):
    dataset: Literal["mnist", "fashion_mnist", "cifar10", "folder", "synthetic", "imagenet"] = (
        Field(
            "mnist",
            description="data set: MNIST (Section 4.1), Fashion-MNIST, CIFAR-10, a folder with "
            "images in train/CLASS/ and test/CLASS/, synthetic patterns, or imagenet, a folder "
            "with images in train/CLASS/ and val/CLASS/ that are read while training (Section 4.2)",
        )
    )
    folder: str = Field(
        "",
        max_length=4096,
        description="where the files of the data set lie; empty: those that come with the project "
        "or were downloaded",
    )
    input: Literal["binary", "grey", "colour"] = Field(
        "binary",
        description="pixels: binary (level above 127; Section 4.1), grey in [0, 1], or colour, "
        "three channels in [0, 1]",
    )
    image_size: int = Field(
        28,
        ge=8,
        le=512,
        description="height and width to which images of a folder are brought; of imagenet, the "
        "side of the crops",
    )
    examples: int = Field(
        0, ge=0, le=10_000_000, description="training examples used; 0: all of them"
    )
    shuffling: Literal["thorough", "within_shards", "between_shards"] = Field(
        "thorough",
        description="thorough: a fresh order of all examples each epoch; within_shards: of the "
        "shards, and within each; between_shards: of the shards alone, so that the same examples "
        "always meet (Section 4.2.1)",
    )
    shard_size: int = Field(
        1_000, ge=2, le=1_000_000, description="examples in a shard, for shuffling by shards"
    )

    crop_area: float = Field(
        1.0,
        ge=0.05,
        le=1,
        description="training images are random crops of at least this share of the area, with an "
        "aspect ratio of 3/4 to 4/3, brought back to size (GoogLeNet: 0.08); 1: whole images",
    )
    flip: bool = Field(False, description="mirror each training image with probability 1/2")
    distortion: float = Field(
        0.0,
        ge=0,
        le=1,
        description="brightness, contrast and saturation of training images vary by up to this "
        "share (Section 4.2.1: less with BN; no value is stated)",
    )

    unreadable: Literal["refuse", "skip"] = Field(
        "refuse",
        description="an image of a folder that cannot be read: refuse ends the run and names it; "
        "skip passes over it, and the run tells how many there were",
    )
    loaders: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that read the images of imagenet; 0: as many as there are CPU cores",
    )

    @property
    def is_streamed(self) -> bool:
        """Whether images are read from the disk while training, as too many for the memory."""
        return self.dataset == "imagenet"

    @property
    def is_augmented(self) -> bool:
        return self.crop_area < 1 or self.flip or self.distortion > 0

    @property
    def pixels(self) -> int:
        """Numbers that an image consists of."""
        known = DATASETS.get(self.dataset)
        side = known.side if known else self.image_size
        return side * side * (3 if self.input == "colour" else 1)


class ModelConfig(Part):
    kind: Literal["mlp", "cnn", "inception", "small_inception"] = Field(
        "mlp",
        description="mlp: multilayer perceptron (Section 4.1); cnn: convolutions before the "
        "hidden layers (Section 3.2); inception: the network for ImageNet (Figure 5); "
        "small_inception: its twin for images of 28 or 32 pixels, with five of its ten modules "
        "and an eighth of its feature maps",
    )
    inception_channels: Literal["summed", "printed"] = Field(
        "summed",
        description="channels of modules 4c and 4d of the inception, where Figure 5 contradicts "
        "itself: 576 as the printed sums, or 608 as the sums of the printed rows",
    )
    stem: Literal["separable", "plain"] = Field(
        "separable",
        description="first convolution of an inception: separable, 8 depthwise feature maps for "
        "each colour (appendix), or plain",
    )
    response_normalization: bool = Field(
        False,
        description="local response normalization in the stem of an inception, as it has without "
        "BN (Section 4.2.1)",
    )
    channels: tuple[Annotated[int, Field(ge=1, le=512)], ...] = Field(
        (16, 32),
        strict=False,
        min_length=1,
        max_length=5,
        description="feature maps of each convolution of a cnn, each followed by 2×2 max pooling",
    )
    kernel: int = Field(
        5, ge=1, le=31, description="height and width of the kernels of a cnn, without padding"
    )
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (100, 100, 100),
        strict=False,
        min_length=1,
        max_length=20,
        description="units of each hidden layer",
    )
    nonlinearity: Literal["sigmoid", "relu", "tanh", "leaky_relu", "elu"] = Field(
        "sigmoid", description="activation function of the hidden layers (Section 4.1: sigmoid)"
    )
    normalization: Literal[
        "none", "batch", "layer", "group", "instance", "batch_renorm", "whitening"
    ] = Field(
        "batch",
        description="none: g(Wu + b); batch: g(BN(Wu)), no bias (Section 3.2); layer (Ba 2016), "
        "group (Wu & He 2018), instance (Ulyanov 2016), batch_renorm (Ioffe 2017) and whitening, "
        "jointly over all units (Section 2), in its place. instance leaves fully connected layers "
        "as they are: one value has no variance",
    )
    groups: int = Field(
        4, ge=1, le=4096, description="groups of units in group normalization (our choice)"
    )
    initialization: Literal["gaussian", "glorot", "he", "orthogonal"] = Field(
        "gaussian",
        description="initial weights: gaussian, with init_std (Section 4.1); glorot (2010) and he "
        "(2015), Gaussian with a std that follows from the width of the layers; orthogonal",
    )
    init_std: float = Field(
        0.05,
        gt=0,
        le=10,
        description='std of the Gaussian initial weights ("small" in Section 4.1; our choice); '
        "the other initializations have their own",
    )
    conv_scale: float = Field(
        1.0,
        gt=0,
        le=100,
        description="initial weights of the convolutions of an inception are multiplied by this "
        '("increased" in Section 4.2.3; our choice)',
    )
    bn_placement: Literal["before", "after"] = Field(
        "before",
        description="normalization immediately before the nonlinearity (Section 3.2), or after it",
    )
    bn_affine: Literal["learned", "fixed"] = Field(
        "learned", description="γ and β learned (Algorithm 1), or fixed at 1 and 0"
    )
    bn_per: Literal["feature_map", "activation", "last_activations"] = Field(
        "feature_map",
        description="one mean, variance, γ and β for a feature map of a convolution (Section "
        "3.2), or for each activation in it: in all layers, or in the last module of an inception "
        "(Section 4.2.3)",
    )
    bn_epsilon: float = Field(
        1e-5, gt=0, le=1, description="added to the variance (Algorithm 1; our choice)"
    )
    bn_momentum: float = Field(
        0.1,
        gt=0,
        le=1,
        description="weight of the newest batch in the running statistics (Section 3.1; our "
        "choice)",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the activations of fully connected hidden layers, of an inception "
        "those before its classifier, that is dropped (Section 3.4)",
    )

    @property
    def is_inception(self) -> bool:
        return self.kind in ("inception", "small_inception")

    @property
    def layers(self) -> dict[str, int]:
        """Layers with a nonlinearity by name, from the input on, with their number of units; of a
        convolution, a unit is a feature map."""
        if self.is_inception:
            return inception.plan(self.kind, self.inception_channels).layers()
        maps = self.channels if self.kind == "cnn" else ()
        return {
            **{f"conv{i}": units for i, units in enumerate(maps, start=1)},
            **{f"hidden{i}": units for i, units in enumerate(self.hidden, start=1)},
        }


class OptimizerConfig(Part):
    kind: Literal["sgd", "adagrad", "adam"] = Field(
        "sgd",
        description="stochastic gradient descent on the mean loss; adagrad (Duchi 2011; Section "
        "1), adam (Kingma & Ba 2015)",
    )
    learning_rate: float = Field(
        0.15,
        gt=0,
        le=100,
        description="step size (Section 4.1 states none; our choice). BN is to allow higher ones "
        "(Section 3.3)",
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="momentum of sgd (Section 4.2; its value is not stated)"
    )
    nesterov: bool = Field(False, description="Nesterov's form of the momentum")
    l2: float = Field(
        0.0,
        ge=0,
        le=1,
        description="λ of the L2 penalty λ/2 · ‖W‖² on the weights; not on biases, γ and β "
        "(Section 4.2.1; its value is not stated)",
    )
    schedule: Literal["constant", "exponential", "step", "cosine"] = Field(
        "constant",
        description="learning rate over the steps: constant; exponential, times decay_factor every "
        "decay_steps, smoothly (Section 4.2.1); step, the same in steps; cosine, to 0 at the end",
    )
    decay_factor: float = Field(
        0.5, gt=0, le=1, description="of schedules exponential and step (our choice)"
    )
    decay_steps: int = Field(
        10_000, ge=1, le=10_000_000, description="of schedules exponential and step (our choice)"
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="updates over which the learning rate rises linearly to its schedule",
    )


class TrainingConfig(Part):
    steps: int = Field(50_000, ge=1, le=100_000_000, description="updates (50,000 in Section 4.1)")
    batch_size: int = Field(
        60, ge=1, le=1_000_000, description="examples a step (60 in Section 4.1)"
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="of the weights and the data order (the paper states none)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is one, else the CPU"
    )
    precision: Literal["float32", "mixed"] = Field(
        "float32",
        description="mixed: convolutions and matrix products of an update in bfloat16, which a GPU "
        "does several times as fast; weights, statistics and all that is measured stay float32",
    )
    evaluations: int = Field(
        100,
        ge=1,
        le=100_000,
        description="evaluations on the whole test set, denser at the start (Figure 1 a)",
    )


class TraceConfig(Part):
    records: int = Field(
        500,
        ge=0,
        le=1_000_000,
        description="percentile records, denser at the start (Figure 1 b, c); 0: none; as many as "
        "steps: at each",
    )
    probe: Literal["heldout", "minibatch"] = Field(
        "heldout",
        description="heldout: a fixed sample of test examples; minibatch: the next training batch",
    )
    probe_size: int = Field(
        500, ge=2, le=1_000_000, description="examples in the fixed held-out sample"
    )
    bn_mode: Literal["batch", "running"] = Field(
        "batch", description="statistics that BN uses when probed; batch is the training network"
    )
    layers: tuple[Annotated[str, Field(max_length=40)], ...] = Field(
        (),
        strict=False,
        max_length=100,
        description="layers that are recorded, by name; none named: all of them",
    )
    predictions: bool = Field(
        False,
        description="store the class probabilities of all test examples at the end, of one crop "
        "and of many, as an ensemble needs them (Section 4.2.3)",
    )
