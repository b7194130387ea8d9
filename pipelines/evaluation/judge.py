"""The judges: two small classifiers of an image set, whose features stand in for Inception's.

Inception is made for photographs of 299x299 and has to be downloaded. Those of FashionMNIST at 16x16
ship with the package; `scripts/train_judge.py` trains others, and keeps them in the folder of their set.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cross_entropy

from denoiser.data import CLASS_NAMES, ImageSet
from denoiser.files import atomic_path
from denoiser.randomness import JUDGE, seeded_generator
from pipelines.evaluation.distances import Moments, frechet_distance
from pipelines.evaluation.judge_networks import IMAGE_SHAPE, JUDGES, NUM_FEATURES, ConvolutionalJudge, Judge

BATCH_SIZE = 250
CPU = torch.device("cpu")
LARGEST_BATCH, LEAST_STEPS = 256, 1000  # of a training
LABEL_SMOOTHING = 0.1
PACKAGE = Path(__file__).parent
FIRST_LAYER = "body.0.0.weight"  # of every kind


def weights_file(kind: str, folder: Path = PACKAGE) -> Path:
    """Return the path of a judge's weights."""
    return folder / f"{kind}.safetensors"


def card_file(kind: str, folder: Path = PACKAGE) -> Path:
    """Return the path of a judge's card."""
    return folder / f"{kind}.json"


def find_judges(images: ImageSet) -> tuple[Judge, ...]:
    """Return both judges of an image set: those that ship, those in the set's folder, or none.

    Raises:
        FileNotFoundError: If one of their files is missing.
        ValueError: If the folder has one of the judges alone, a file was altered, or the classes are others.
    """
    if images.class_names == CLASS_NAMES and tuple(images.images.shape[1:]) == IMAGE_SHAPE:
        return load_judges()
    folder = images.folder
    if folder is None or not images.class_names:
        return ()
    found = [kind for kind in JUDGES if weights_file(kind, folder).is_file()]
    if not found:
        return ()
    if lacking := [weights_file(kind, folder).name for kind in JUDGES if kind not in found]:
        there = weights_file(found[0], folder)
        raise ValueError(f"{there} is alone, without {', '.join(lacking)}; {_advice(folder)}, which makes both")
    judges = load_judges(folder)
    for judge in judges:
        if judge.head.out_features != len(images.class_names):
            raise ValueError(
                f"{weights_file(judge.kind, folder)} is of {judge.head.out_features} classes, and the set has "
                f"{len(images.class_names)}; {_advice(folder)}"
            )
    return judges


def load_judges(folder: Path = PACKAGE) -> tuple[Judge, ...]:
    """Load both judges; by default, those that ship with the package. See `load_judge`."""
    return tuple(load_judge(kind, folder) for kind in JUDGES)


def load_judge(kind: str = ConvolutionalJudge.kind, folder: Path = PACKAGE) -> Judge:
    """Load a judge, "judge" or "second_judge"; by default, the first one that ships with the package.

    Raises:
        FileNotFoundError: If one of its two files is missing.
        ValueError: If the weights do not have the hash on the card.
    """
    weights = weights_file(kind, folder)
    for path in (weights, card_file(kind, folder)):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {_advice(folder)}")
    content, facts = weights.read_bytes(), read_card(kind, folder)
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ValueError(f"{weights} was altered: its SHA-256 should be {facts['sha256']}; {_advice(folder)}")
    state = load(content)
    judge = JUDGES[kind](state[FIRST_LAYER].shape[1], len(state["head.weight"]))
    judge.load_state_dict(state)
    judge.facts = facts
    return judge.to(memory_format=torch.channels_last).eval()


def _advice(folder: Path) -> str:
    if folder == PACKAGE:
        return "install the package again"
    return "train it again with scripts/train_judge.py"


def read_card(kind: str, folder: Path = PACKAGE) -> dict[str, Any]:
    """Return the card of a judge: "sha256", "test_accuracy" (on the held-out images) and "seed"."""
    card = card_file(kind, folder)
    try:
        facts = json.loads(card.read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("sha256", "test_accuracy", "seed")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card} was altered: {error!r}; {_advice(folder)}") from error


def save_judge(judge: Judge, test_accuracy: float, seed: int, folder: Path) -> None:
    """Save the judge's weights, and the card with their hash."""
    content = save({name: tensor.contiguous() for name, tensor in judge.state_dict().items()})
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "test_accuracy": test_accuracy, "seed": seed}
    with atomic_path(weights_file(judge.kind, folder)) as temporary:
        temporary.write_bytes(content)
    with atomic_path(card_file(judge.kind, folder)) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def train_judge(
    kind: str,
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
        kind: Which judge, "judge" or "second_judge".
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
    judge: Judge = JUDGES[kind](images.images.shape[1], len(images.class_names))
    judge = judge.to(device).to(memory_format=torch.channels_last)
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
            _, scores = judge(judge.augment(batch, generator))
            cross_entropy(scores, labels, label_smoothing=LABEL_SMOOTHING).backward()
            optimizer.step()
            optimizer.zero_grad()
        on_epoch(epoch + 1, epochs, judge.eval())
    return judge.eval().cpu()


def measure(judge: Judge, split: str, images: ImageSet) -> None:
    """Set the reference statistics of a split, "train" or "test"."""
    moments = Moments.of(judge_images(judge, images.images)[0])
    judge.get_buffer(f"{split}_mean").copy_(moments.mean)
    judge.get_buffer(f"{split}_covariance").copy_(moments.covariance)


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
