"""Networks of the judges: two small classifiers whose features stand in for Inception's.

They differ in architecture, features and augmentation, so that what one does not see the other may.
"""

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

from pipelines.evaluation.distances import Moments

NUM_FEATURES = 128
NUM_CLASSES, IMAGE_SHAPE = 10, (1, 16, 16)  # of the judges that ship
SPLITS = ("train", "test")
MAP_SIDE = 4  # of the map that the second judge's features are of
CHANNELS_IN_A_GROUP = 16


class Judge(nn.Module):
    """Classifier whose 128 features images are compared in.

    Args:
        body: Network from images to what `features` is computed of.
        num_classes: Number of classes.
        dropout: Fraction of the features that is dropped in training.

    Attributes:
        kind: Name of its files, of its feature space and in reports.
        facts: Content of its card.
    """

    kind: ClassVar[str]

    def __init__(self, body: nn.Module, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(NUM_FEATURES, num_classes)
        for split in SPLITS:  # reference statistics, saved with the weights
            self.register_buffer(f"{split}_mean", torch.zeros(NUM_FEATURES, dtype=torch.float64))
            self.register_buffer(f"{split}_covariance", torch.zeros(NUM_FEATURES, NUM_FEATURES, dtype=torch.float64))

    def moments(self, split: str) -> Moments:
        """Return the moments of the features of the "train" or "test" split, which is the held-out images."""
        mean, covariance = self.get_buffer(f"{split}_mean"), self.get_buffer(f"{split}_covariance")
        return Moments(mean, covariance)

    def augment(self, images: Tensor, generator: Generator) -> Tensor:
        """Return a training batch in [-1, 1], `(batch, channels, height, width)`, with random changes."""
        return images

    def features(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1] to features `(batch, 128)`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images in [-1, 1] to features `(batch, 128)` and logits `(batch, num_classes)`."""
        features = self.features(images)
        return features, self.head(self.dropout(features))


def conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class ConvolutionalJudge(Judge):
    """The first judge: six convolutions with batch norm; the features are means over the last map."""

    kind = "judge"

    def __init__(self, channels: int = IMAGE_SHAPE[0], num_classes: int = NUM_CLASSES) -> None:
        body = nn.Sequential(
            conv_norm_relu(channels, 32),
            conv_norm_relu(32, 32),
            conv_norm_relu(32, 64, stride=2),
            conv_norm_relu(64, 64),
            conv_norm_relu(64, NUM_FEATURES, stride=2),
            conv_norm_relu(NUM_FEATURES, NUM_FEATURES),
        )
        super().__init__(body, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1] to features `(batch, 128)`."""
        return self.body(images).mean(dim=(2, 3))


def norm_gelu_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return group norm, GELU and a 3x3 convolution."""
    norm = nn.GroupNorm(in_channels // CHANNELS_IN_A_GROUP, in_channels)
    return nn.Sequential(norm, nn.GELU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))


class JudgeBlock(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            norm_gelu_conv(in_channels, out_channels), norm_gelu_conv(out_channels, out_channels)
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)`."""
        return self.skip(x) + self.residual(x)


class ResidualJudge(Judge):
    """The second judge: three residual blocks; the features are a hidden layer on the whole last map.

    It sees where in an image something is, which means over a map leave out.
    """

    kind = "second_judge"

    def __init__(self, channels: int = IMAGE_SHAPE[0], num_classes: int = NUM_CLASSES) -> None:
        body = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1)),  # named as the first judge's first layer
            JudgeBlock(32, 32),
            nn.AvgPool2d(2),
            JudgeBlock(32, 64),
            nn.AvgPool2d(2),
            JudgeBlock(64, 96),
        )
        super().__init__(body, num_classes, dropout=0.3)
        self.hidden = nn.Sequential(nn.Linear(96 * MAP_SIDE**2, NUM_FEATURES), nn.GELU())

    def augment(self, images: Tensor, generator: Generator) -> Tensor:
        """Return a training batch with each image shifted by up to one pixel, its border repeated."""
        height, width = images.shape[2:]
        down, right = torch.randint(0, 3, (2, len(images), 1, 1), generator=generator).to(images.device)
        rows = torch.arange(height, device=images.device)[:, None] + down  # (batch, height, 1)
        columns = torch.arange(width, device=images.device) + right  # (batch, 1, width)
        which = torch.arange(len(images), device=images.device)[:, None, None]
        padded = pad(images, (1, 1, 1, 1), mode="replicate")
        return padded[which, :, rows, columns].movedim(-1, 1)

    def features(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1] to features `(batch, 128)`."""
        x = adaptive_avg_pool2d(self.body(images), MAP_SIDE)  # at 16x16, the map itself
        return self.hidden(x.flatten(1))


JUDGES: dict[str, type[ConvolutionalJudge | ResidualJudge]] = {
    judge.kind: judge for judge in (ConvolutionalJudge, ResidualJudge)
}
