"""From images to a report: plain figures, the same to the last digit for the same seed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiser.data import ImageSet
from denoiser.evaluation.comparison import Comparison, mean_and_spread
from denoiser.evaluation.drawing import Drawn, calls
from denoiser.evaluation.features import judge_space, pixel_space
from denoiser.evaluation.judge import CARD, Judge, judge_images
from denoiser.evaluation.memorisation import closest_pairs, nearness

Report = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a report is made from.

    Attributes:
        judge: The classifier that looks at the images.
        train: Training split.
        test: Test split.
        seed: Of the choice among the splits' images and of the ceiling's noise; seed + 1 for the second set, and so on.
    """

    judge: Judge
    train: ImageSet
    test: ImageSet
    seed: int


def make_report(
    drawn: Drawn, sections: Sequence[str], evidence: Evidence, on_section: Callable[[str], object] = lambda name: None
) -> Report:
    """Judge what was drawn.

    Args:
        drawn: The images, and the bound where the likelihood is asked for.
        sections: Names from `config.SECTIONS`.
        evidence: Judge and data.
        on_section: Called with the name of each section before it is made.

    Returns:
        Figures by section; all plain numbers, lists and dicts. "judge" says who judged.
    """
    report: Report = {
        "judge": json.loads(CARD.read_text()),
        "images": len(drawn.samples[0]),
        "sets": len(drawn.samples),
    }
    in_judge = Comparison(judge_space(evidence.judge), evidence.train, evidence.test)
    for name in sections:
        on_section(name)
        match name:
            case "distances":
                in_pixels = Comparison(pixel_space(evidence.train), evidence.train, evidence.test)
                report[name] = {
                    comparison.space.name: mean_and_spread(
                        [comparison.figures(images, evidence.seed + i) for i, images in enumerate(drawn.samples)]
                    )
                    for comparison in (in_judge, in_pixels)
                }
            case "classes":
                report[name] = _classes(drawn, in_judge, evidence)
            case "guidance":
                report[name] = _guidance(drawn, in_judge, evidence)
            case "likelihood":
                assert drawn.bound is not None
                report[name] = drawn.bound.summary()
            case "memorisation":
                report[name] = _memorisation(drawn.samples[0], in_judge, evidence)
            case "samplers":
                report[name] = _samplers(drawn, in_judge, evidence)
    return report


def _classes(drawn: Drawn, comparison: Comparison, evidence: Evidence) -> Report:
    """Each class's distance, and how often the judge sees in an image the class that was asked for."""
    assert drawn.labels is not None
    names, labels = evidence.train.class_names, drawn.labels
    seen = [judge_images(evidence.judge, images)[1] for images in drawn.samples]
    confusion = torch.stack([_confusion(labels, predicted, len(names)) for predicted in seen]).sum(dim=0)
    _, of_test = judge_images(evidence.judge, evidence.test.images)
    rows = []
    for images, predicted in zip(drawn.samples, seen, strict=True):
        agreement = _by_class(predicted == labels, labels, len(names))
        distances = comparison.by_class(images, labels)
        rows.append({name: {**distances[i], "agreement": agreement[i]} for i, name in enumerate(names)})
    return {
        "by_class": mean_and_spread(rows),
        "agreement": mean_and_spread([(predicted == labels).double().mean().item() for predicted in seen]),
        "agreement_floor": _by_class(of_test == evidence.test.labels, evidence.test.labels, len(names)),
        "confusion": confusion.tolist(),
    }


def _guidance(drawn: Drawn, comparison: Comparison, evidence: Evidence) -> list[Report]:
    """Agreement, recall and distance for each guidance scale; last, real test images."""
    rows: list[Report] = []
    for scale, images in drawn.by_guidance.items():
        labels = torch.arange(len(images)) * len(evidence.train.class_names) // len(images)
        rows.append(
            {"scale": scale, **_agreement(images, labels, evidence), **comparison.in_short(images, evidence.seed)}
        )
    return [*rows, _floor(len(images), comparison, evidence)]


def _samplers(drawn: Drawn, comparison: Comparison, evidence: Evidence) -> list[Report]:
    """The distance of each sampler and number of steps; last, real test images."""
    rows: list[Report] = []
    for (name, steps), images in drawn.by_sampler.items():
        figures = comparison.in_short(images, evidence.seed)
        rows.append({"sampler": name, "steps": steps, "calls": calls(name, steps), "images": len(images), **figures})
    return [*rows, _floor(len(images), comparison, evidence)]


def _floor(count: int, comparison: Comparison, evidence: Evidence) -> Report:
    images, labels = evidence.test.images[:count], evidence.test.labels[:count]
    figures = comparison.in_short(images, evidence.seed)
    return {"floor": True, "images": count, **_agreement(images, labels, evidence), **figures}


def _memorisation(images: Tensor, comparison: Comparison, evidence: Evidence) -> Report:
    distances, indices = comparison.nearest_training_images(images)
    held_out, _ = comparison.nearest_training_images(evidence.test.images[: len(images)])
    return {
        "samples": nearness(distances),
        "floor": nearness(held_out),
        "closest_pairs": closest_pairs(distances, indices),
    }


def _agreement(images: Tensor, labels: Tensor, evidence: Evidence) -> Report:
    return {"agreement": (judge_images(evidence.judge, images)[1] == labels).double().mean().item()}


def _by_class(right: Tensor, labels: Tensor, num_classes: int) -> list[float]:
    return [right[labels == label].double().mean().item() for label in range(num_classes)]


def _confusion(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count images by the class asked for (row) and the class seen (column)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
