"""The judge: a small FashionMNIST classifier at 16x16, whose features stand in for Inception's.

Inception is made for photographs of 299x299 and has to be downloaded. The judge is trained by
`scripts/train_judge.py` and ships with the package.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from denoiser.data import ImageSet
from denoiser.files import atomic_path
from denoiser.randomness import JUDGE, seeded_generator
from pipelines.evaluation.distances import Moments, frechet_distance

NUM_FEATURES, NUM_CLASSES = 128, 10
IMAGE_SHAPE = (1, 16, 16)
SPLITS = ("train", "test")
BATCH_SIZE = 250
WEIGHTS = Path(__file__).with_name("judge.safetensors")
CARD = Path(__file__).with_name("judge.json")


def conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class Judge(nn.Module):
    """Six convolutions and global average pooling: 128 features, and the logits of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm_relu(1, 32),
            conv_norm_relu(32, 32),
            conv_norm_relu(32, 64, stride=2),
            conv_norm_relu(64, 64),
            conv_norm_relu(64, NUM_FEATURES, stride=2),
            conv_norm_relu(NUM_FEATURES, NUM_FEATURES),
        )
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        for split in SPLITS:  # reference statistics, saved with the weights
            self.register_buffer(f"{split}_mean", torch.zeros(NUM_FEATURES, dtype=torch.float64))
            self.register_buffer(f"{split}_covariance", torch.zeros(NUM_FEATURES, NUM_FEATURES, dtype=torch.float64))

    def moments(self, split: str) -> Moments:
        """Return the moments of the features of the "train" or "test" split."""
        mean, covariance = self.get_buffer(f"{split}_mean"), self.get_buffer(f"{split}_covariance")
        return Moments(mean, covariance)

    def measure(self, split: str, images: ImageSet) -> None:
        """Set the reference statistics of a split."""
        features, _ = judge_images(self, images.images)
        moments = Moments.of(features)
        self.get_buffer(f"{split}_mean").copy_(moments.mean)
        self.get_buffer(f"{split}_covariance").copy_(moments.covariance)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images in [-1, 1], `(batch, 1, 16, 16)`, to features `(batch, 128)` and logits `(batch, 10)`."""
        features = self.body(images).mean(dim=(2, 3))
        return features, self.head(features)


def load_judge(weights: Path = WEIGHTS, card: Path = CARD) -> Judge:
    """Load the judge that ships with the package.

    Raises:
        FileNotFoundError: If one of its two files is missing.
        ValueError: If the weights do not have the hash on the card.
    """
    for path in (weights, card):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: install the package again, or run scripts/train_judge.py")
    content, expected = weights.read_bytes(), read_card(card)["sha256"]
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{weights} was altered: its SHA-256 should be {expected}; install the package again")
    judge = Judge()
    judge.load_state_dict(load(content))
    return judge.to(memory_format=torch.channels_last).eval()


def read_card(card: Path = CARD) -> dict[str, Any]:
    """Return the judge's card: "sha256", "test_accuracy" and "seed"."""
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("sha256", "test_accuracy", "seed")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card} was altered: {error!r}; install the package again") from error


def save_judge(judge: Judge, test_accuracy: float, seed: int, weights: Path = WEIGHTS, card: Path = CARD) -> None:
    """Save the judge's weights, and the card with their hash."""
    content = save({name: tensor.contiguous() for name, tensor in judge.state_dict().items()})
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "test_accuracy": test_accuracy, "seed": seed}
    with atomic_path(weights) as temporary:
        temporary.write_bytes(content)
    with atomic_path(card) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def train_judge(
    images: ImageSet,
    seed: int,
    epochs: int,
    batch_size: int = 256,
    peak_rate: float = 3e-3,
    on_epoch: Callable[[int, Judge], None] = lambda epoch, judge: None,
) -> Judge:
    """Train a judge with AdamW, warm-up, cosine decay, label smoothing and horizontal flips."""
    torch.manual_seed(seed)  # initial weights come from the global generator
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05, fused=True)
    steps_an_epoch = len(images) // batch_size
    for epoch in range(epochs):
        generator = seeded_generator(JUDGE, seed, epoch)
        order = torch.randperm(len(images), generator=generator)
        judge.train()
        for step in range(steps_an_epoch):
            progress = (epoch * steps_an_epoch + step) / (epochs * steps_an_epoch)
            rate = peak_rate * min(1.0, 20 * progress + 0.01) * (1 + math.cos(math.pi * progress)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch, labels = images.batch(order[step * batch_size : (step + 1) * batch_size])
            mirrored = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
            _, scores = judge(batch)
            cross_entropy(scores, labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
        on_epoch(epoch, judge.eval())
    return judge.eval()


@torch.no_grad()
def judge_images(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features `(count, 128)` and predicted classes `(count,)` of uint8 images `(count, 1, 16, 16)`.

    They are computed in float32, also under the caller's autocast.
    """
    with torch.autocast(images.device.type, enabled=False):
        results = [judge(batch.float() / 127.5 - 1) for batch in images.split(BATCH_SIZE)]
    features, scores = (torch.cat(parts) for parts in zip(*results, strict=True))
    return features, scores.argmax(dim=1)


def frechet_to_train(judge: Judge, images: Tensor) -> float:
    """Return the Fréchet distance of uint8 images `(count, 1, 16, 16)` to all of the train split."""
    features, _ = judge_images(judge, images)
    return frechet_distance(judge.moments("train"), Moments.of(features))


def accuracy(judge: Judge, images: ImageSet) -> float:
    """Return the accuracy of the judge."""
    _, predicted = judge_images(judge, images.images)
    return (predicted == images.labels).double().mean().item()
