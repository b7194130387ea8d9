"""From images to a report: plain figures, the same to the last digit for the same seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from denoiser.data import ImageSet
from pipelines import SamplingConfig
from pipelines.evaluation.comparison import Comparison, mean_and_spread
from pipelines.evaluation.drawing import Drawn, calls, sampler_key
from pipelines.evaluation.features import judge_space, pixel_space
from pipelines.evaluation.judge import Judge, read_card
from pipelines.evaluation.memorisation import closest_pairs, nearness
from pipelines.sampling import spread_labels

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


class Reporter:
    """Judges what was drawn, section by section.

    Args:
        drawn: The images, and the bound where the likelihood is asked for.
        evidence: Judge and data.
    """

    def __init__(self, drawn: Drawn, evidence: Evidence) -> None:
        self.drawn, self.evidence, self.seed = drawn, evidence, evidence.seed

    @cached_property
    def in_judge(self) -> Comparison:
        """Both splits in the judge's features, which the likelihood can do without."""
        return Comparison(judge_space(self.evidence.judge), self.evidence.train, self.evidence.test)

    @cached_property
    def features(self) -> list[Tensor]:
        """The judge's features of each set of samples."""
        return [self.in_judge.space.features(images) for images in self.drawn.samples]

    def distances(self) -> Report:
        """Return every distance in both spaces, mean and spread over the sets."""
        in_pixels = Comparison(pixel_space(self.evidence.train), self.evidence.train, self.evidence.test)
        in_both = {
            self.in_judge: self.features,
            in_pixels: [in_pixels.space.features(images) for images in self.drawn.samples],
        }
        return {
            comparison.space.name: mean_and_spread(
                [comparison.figures(features, self.seed + index) for index, features in enumerate(sets)]
            )
            for comparison, sets in in_both.items()
        }

    def classes(self) -> Report:
        """Return each class's distance, and how often the judge sees in an image the class that was asked for."""
        names, labels = self.evidence.train.class_names, self.drawn.labels
        assert labels is not None
        rows, agreements, confusion = [], [], torch.zeros(len(names), len(names), dtype=torch.long)
        for features in self.features:
            seen = self._classify(features)
            confusion += torch.bincount(labels * len(names) + seen, minlength=len(names) ** 2).reshape(confusion.shape)
            agreements.append((seen == labels).double().mean().item())
            own = _share_by_class(seen == labels, labels, len(names))
            distances = self.in_judge.by_class(features, labels)
            rows.append({name: {**distances[i], "agreement": own[i]} for i, name in enumerate(names)})
        test_labels = self.evidence.test.labels
        right = self._classify(self.in_judge.features["test"]) == test_labels
        return {
            "by_class": mean_and_spread(rows),
            "agreement": mean_and_spread(agreements),
            "agreement_floor": _share_by_class(right, test_labels, len(names)),
            "confusion": confusion.tolist(),
        }

    def guidance(self) -> list[Report]:
        """Return agreement, recall and distance for each guidance scale; last, those of real test images."""
        num_classes, rows = len(self.evidence.train.class_names), []
        for scale, images in self.drawn.by_guidance.items():
            features = self.in_judge.space.features(images)
            labels = torch.tensor(spread_labels(len(images), num_classes))
            rows.append({"scale": scale, **self._in_short(features, labels)})
        return [*rows, self._floor(len(images))]

    def likelihood(self) -> Report:
        """Return the bound in bits per dimension, and its parts."""
        assert self.drawn.bound is not None
        return self.drawn.bound.summary()

    def memorisation(self) -> Report:
        """Return how near the first set's samples are to training images, beside real test images."""
        distances, indices = self.in_judge.nearest_training_images(self.features[0])
        held_out, _ = self.in_judge.nearest_training_images(self.in_judge.features["test"][: len(distances)])
        pairs = closest_pairs(distances, indices)
        return {"samples": nearness(distances), "floor": nearness(held_out), "closest_pairs": pairs}

    def samplers(self) -> list[Report]:
        """Return the distance of each sampler and number of steps; last, that of real test images."""
        rows: list[Report] = []
        for (name, steps), images in self.drawn.by_sampler.items():
            figures = self.in_judge.in_short(self.in_judge.space.features(images), self.seed)
            network_calls = calls(SamplingConfig(scheduler=name, steps=steps))
            rows.append({"sampler": name, "steps": steps, "calls": network_calls, **figures})
        return [*rows, self._floor(len(images))]

    def _floor(self, count: int) -> Report:
        features, labels = self.in_judge.features["test"][:count], self.evidence.test.labels[:count]
        return {"floor": True, "images": count, **self._in_short(features, labels)}

    def _in_short(self, features: Tensor, labels: Tensor) -> Report:
        agreement = (self._classify(features) == labels).double().mean().item()
        return {"agreement": agreement, **self.in_judge.in_short(features, self.seed)}

    def _classify(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self.evidence.judge.head(features).argmax(dim=1)


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
    reporter = Reporter(drawn, evidence)
    report: Report = {"judge": read_card()}
    if drawn.samples:  # which not every section looks at
        report |= {"images": len(drawn.samples[0]), "sets": len(drawn.samples)}
    for name in sections:
        on_section(name)
        report[name] = getattr(reporter, name)()
    return report


def flat_figures(report: Report) -> dict[str, float]:
    """Return every figure of a report by its path, as a run log wants it; tables' rows by what they are about."""
    figures: dict[str, float] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, entry in value.items():
                visit(f"{path}/{name}" if path else name, entry)
        elif isinstance(value, float):
            figures[path] = value

    for name, section in report.items():
        if name not in ("guidance", "samplers"):
            visit(name, section)
    for row in report.get("guidance", []):
        visit(f"guidance/{row.get('scale', 'floor')}", row)
    for row in report.get("samplers", []):
        visit(f"samplers/{'floor' if row.get('floor') else sampler_key(row['sampler'], row['steps'])}", row)
    return figures


def _share_by_class(right: Tensor, labels: Tensor, num_classes: int) -> list[float]:
    return [right[labels == label].double().mean().item() for label in range(num_classes)]
