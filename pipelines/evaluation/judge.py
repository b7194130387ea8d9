"""The judge: a small classifier of an image set, whose features stand in for Inception's.

Inception is made for photographs of 299x299 and has to be downloaded. That of FashionMNIST at 16x16
ships with the package; `scripts/train_judge.py` trains others, and keeps them in the folder of their set.
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

from denoiser.data import CLASS_NAMES, ImageSet
from denoiser.files import atomic_path
from denoiser.randomness import JUDGE, seeded_generator
from pipelines.evaluation.distances import Moments, frechet_distance

NUM_FEATURES = 128
NUM_CLASSES, IMAGE_SHAPE = 10, (1, 16, 16)  # of the judge that ships
SPLITS = ("train", "test")
BATCH_SIZE = 250
CPU = torch.device("cpu")
LARGEST_BATCH, LEAST_STEPS = 256, 1000  # of a training
PACKAGE = Path(__file__).parent
WEIGHTS, CARD = "judge.safetensors", "judge.json"


def conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class Judge(nn.Module):
    """Six convolutions and global average pooling: 128 features, and the logits of the classes.

    Attributes:
        facts: The content of its card.
    """

    def __init__(self, channels: int = IMAGE_SHAPE[0], num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}
        self.body = nn.Sequential(
            conv_norm_relu(channels, 32),
            conv_norm_relu(32, 32),
            conv_norm_relu(32, 64, stride=2),
            conv_norm_relu(64, 64),
            conv_norm_relu(64, NUM_FEATURES, stride=2),
            conv_norm_relu(NUM_FEATURES, NUM_FEATURES),
        )
        self.head = nn.Linear(NUM_FEATURES, num_classes)
        for split in SPLITS:  # reference statistics, saved with the weights
            self.register_buffer(f"{split}_mean", torch.zeros(NUM_FEATURES, dtype=torch.float64))
            self.register_buffer(f"{split}_covariance", torch.zeros(NUM_FEATURES, NUM_FEATURES, dtype=torch.float64))

    def moments(self, split: str) -> Moments:
        """Return the moments of the features of the "train" or "test" split, which is the held-out images."""
        mean, covariance = self.get_buffer(f"{split}_mean"), self.get_buffer(f"{split}_covariance")
        return Moments(mean, covariance)

    def measure(self, split: str, images: ImageSet) -> None:
        """Set the reference statistics of a split."""
        moments = Moments.of(judge_images(self, images.images)[0])
        self.get_buffer(f"{split}_mean").copy_(moments.mean)
        self.get_buffer(f"{split}_covariance").copy_(moments.covariance)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images in [-1, 1] to features `(batch, 128)` and logits `(batch, num_classes)`."""
        features = self.body(images).mean(dim=(2, 3))
        return features, self.head(features)


def find_judge(images: ImageSet) -> Judge | None:
    """Return the judge of an image set: the one that ships, the one in the set's folder, or None."""
    if images.class_names == CLASS_NAMES and tuple(images.images.shape[1:]) == IMAGE_SHAPE:
        return load_judge()
    if images.folder is None or not images.class_names or not (images.folder / WEIGHTS).is_file():
        return None
    judge = load_judge(images.folder)
    if judge.head.out_features != len(images.class_names):
        raise ValueError(
            f"{images.folder / WEIGHTS} is of {judge.head.out_features} classes, and the set has "
            f"{len(images.class_names)}; {_advice(images.folder)}"
        )
    return judge


def load_judge(folder: Path = PACKAGE) -> Judge:
    """Load a judge; by default, the one that ships with the package.

    Raises:
        FileNotFoundError: If one of its two files is missing.
        ValueError: If the weights do not have the hash on the card.
    """
    weights = folder / WEIGHTS
    for path in (weights, folder / CARD):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {_advice(folder)}")
    content, facts = weights.read_bytes(), read_card(folder)
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ValueError(f"{weights} was altered: its SHA-256 should be {facts['sha256']}; {_advice(folder)}")
    state = load(content)
    judge = Judge(state["body.0.0.weight"].shape[1], len(state["head.weight"]))
    judge.load_state_dict(state)
    judge.facts = facts
    return judge.to(memory_format=torch.channels_last).eval()


def _advice(folder: Path) -> str:
    if folder == PACKAGE:
        return "install the package again"
    return "train it again with scripts/train_judge.py"


def read_card(folder: Path = PACKAGE) -> dict[str, Any]:
    """Return the card of a judge: "sha256", "test_accuracy" (on the held-out images) and "seed"."""
    card = folder / CARD
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("sha256", "test_accuracy", "seed")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card} was altered: {error!r}; {_advice(folder)}") from error


def save_judge(judge: Judge, test_accuracy: float, seed: int, folder: Path) -> None:
    """Save the judge's weights, and the card with their hash."""
    content = save({name: tensor.contiguous() for name, tensor in judge.state_dict().items()})
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "test_accuracy": test_accuracy, "seed": seed}
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(content)
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def train_judge(
    images: ImageSet,
    seed: int,
    epochs: int | None = None,
    flips: bool = False,
    peak_rate: float = 3e-3,
    device: torch.device = CPU,
    on_epoch: Callable[[int, int, Judge], None] = lambda epoch, epochs, judge: None,
) -> Judge:
    """Train a judge with AdamW, warm-up, cosine decay and label smoothing.

    Args:
        images: Training images with labels.
        seed: Seed of the initial weights and of the batches.
        epochs: Passes over the images; None for 16, or as many as make 1,000 steps.
        flips: Whether half of the images are flipped horizontally, as suits clothes, not digits.
        peak_rate: Highest learning rate.
        device: Where to train.
        on_epoch: Called after each epoch with its number from 1, the number of all, and the judge.
    """
    if images.labels is None:
        raise ValueError("the images have no labels, and a classifier needs them")
    torch.manual_seed(seed)  # initial weights come from the global generator
    judge = Judge(images.images.shape[1], len(images.class_names)).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05, fused=True)
    batch_size = max(1, min(LARGEST_BATCH, len(images) // 16))
    steps_an_epoch = len(images) // batch_size
    epochs = epochs or max(16, math.ceil(LEAST_STEPS / steps_an_epoch))
    for epoch in range(epochs):
        generator = seeded_generator(JUDGE, seed, epoch)
        order = torch.randperm(len(images), generator=generator)
        judge.train()
        for step in range(steps_an_epoch):
            progress = (epoch * steps_an_epoch + step) / (epochs * steps_an_epoch)
            rate = peak_rate * min(1.0, 20 * progress + 0.01) * (1 + math.cos(math.pi * progress)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch, labels = images.batch(order[step * batch_size : (step + 1) * batch_size], device)
            assert labels is not None
            if flips:
                mirrored = (torch.rand(len(batch), generator=generator) < 0.5).to(batch.device)
                batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
            _, scores = judge(batch)
            cross_entropy(scores, labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
        on_epoch(epoch + 1, epochs, judge.eval())
    return judge.eval().cpu()


@torch.no_grad()
def judge_images(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features `(count, 128)` and predicted classes `(count,)` of uint8 images, on the images' device.

    They are computed in float32, also under the caller's autocast.
    """
    device = judge.head.weight.device

    def compute(batch: Tensor) -> Tensor:
        return torch.cat(judge(batch.to(device).float() / 127.5 - 1), dim=1).to(images.device)

    with torch.autocast(device.type, enabled=False):
        features, scores = in_batches(compute, images).split([NUM_FEATURES, judge.head.out_features], dim=1)
    return features.contiguous(), scores.argmax(dim=1)


def in_batches(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the rows that are computed of images, `(count, features)`, batch by batch.

    They are written into one tensor: between many small ones, freed memory of batches cannot be used again.
    """
    result = torch.empty(0)
    for start in range(0, len(images), BATCH_SIZE):
        rows = compute(images[start : start + BATCH_SIZE])
        if not start:
            result = rows.new_empty(len(images), *rows.shape[1:])
        result[start : start + len(rows)] = rows
    return result


def frechet_to_train(judge: Judge, images: Tensor) -> float:
    """Return the Fréchet distance of uint8 images to all of the train split."""
    features, _ = judge_images(judge, images)
    return frechet_distance(judge.moments("train"), Moments.of(features))


def accuracy(judge: Judge, images: ImageSet) -> float:
    """Return the accuracy of the judge on images with labels."""
    assert images.labels is not None
    _, predicted = judge_images(judge, images.images)
    return (predicted == images.labels).double().mean().item()
