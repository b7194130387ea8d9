"""Settings of an image set."""

from dataclasses import dataclass
from typing import Literal

from denoiser.checks import check_between, check_kinds, check_positive, pair
from denoiser.data.pictures import Background, Fit

SMALLEST, LARGEST_SIDE = 8, 256
HELD_OUT_SHARE = 0.1
MEMORY_SHARE = 8  # of the free memory, a set takes at most one part


@dataclass(frozen=True)
class DataConfig:
    """Settings of an image set.

    Attributes:
        source: Folder of pictures (flat, or with a sub-folder for each class); .zip file of pictures,
            with the labels in `dataset.json` if it has one; .npz or .npy file; .parquet file or a folder
            of them; folder of a prepared set; data set of torchvision: fashion_mnist, mnist, kmnist,
            emnist, cifar10, cifar100 or svhn; or data set of the Hugging Face Hub: user/name.
        root: Folder of prepared sets, and of downloads.
        size: Height and width, or one number for both, 8 to 256; None for the network's `sample_size`,
            if that is given, or the images' own.
        channels: 1 for grey, 3 for colour; None for the images' own, which the network's `in_channels`, if
            that is given, must match.
        fit: How an image of another shape is fitted: "crop" its middle, "pad" its sides, or "stretch".
        background: Colour under transparent pixels, and of the padding.
        labels: Whether the images' classes are used.
        held_out: Share of the images that are never trained on, or a source of such images, which are
            left out of the others; None for the source's own, or a tenth.
        limit: Number of images to use, evenly spaced in the source. Held-out images of a source's own are
            reduced in proportion, to one at least.
        unreadable: Whether to "stop" at images that cannot be read, or to "skip" them.
        in_memory: Whether to read the images into memory, or to map their file; None to read a set that takes
            up to an eighth of the free memory, counting a copy for each process of the machine.
    """

    source: str = "fashion_mnist"
    root: str = "data"
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    fit: Fit = "crop"
    background: Background = "white"
    labels: bool = True
    held_out: float | str | None = None
    limit: int | None = None
    unreadable: Literal["stop", "skip"] = "stop"
    in_memory: bool | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.source:
            raise ValueError("source is empty; name a folder, a file or a data set")
        if self.size is not None:
            for side in pair(self.size):
                check_between(SMALLEST, LARGEST_SIDE, size=side)
        if self.channels is not None:
            check_positive(channels=self.channels)
        if isinstance(self.held_out, (int, float)) and not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; give a share from 0 to below 1, or a source")
        if self.limit is not None:
            check_positive(limit=self.limit)
