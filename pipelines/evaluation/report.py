"""The report of an evaluation: figures that depend on the seed alone, and its files."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from denoiser.data import ImageSet
from denoiser.files import atomic_path, check_writable
from pipelines import SamplingConfig
from pipelines.evaluation.comparison import Comparison, judge_space, mean_and_spread, pixel_space
from pipelines.evaluation.distances import closest_pairs, nearness
from pipelines.evaluation.judge import Judge, read_card
from pipelines.evaluation.samples import Samples, calls
from pipelines.sampling import spread_labels

JSON, PAGE, TIMINGS, PICTURES = "report.json", "report.md", "timings.json", "report"
Report = dict[str, Any]


class Reporter:
    """Makes the sections of a report. Set i of the samples is compared with the seed `seed` + i."""

    def __init__(self, samples: Samples, judge: Judge, train: ImageSet, test: ImageSet, seed: int) -> None:
        self.samples, self.judge, self.train, self.test, self.seed = samples, judge, train, test, seed

    @cached_property
    def in_judge(self) -> Comparison:
        """Comparison in the judge's features, made on first use."""
        return Comparison(judge_space(self.judge), self.train, self.test)

    @cached_property
    def features(self) -> list[Tensor]:
        """The judge's features of each set of samples."""
        return [self.in_judge.space.features(images) for images in self.samples.sets]

    def distances(self) -> Report:
        """Return all distances in both feature spaces, mean and spread over the sets."""
        in_pixels = Comparison(pixel_space(self.train), self.train, self.test)
        in_both = {
            self.in_judge: self.features,
            in_pixels: [in_pixels.space.features(images) for images in self.samples.sets],
        }
        return {
            comparison.space.name: mean_and_spread(
                [comparison.figures(features, self.seed + index) for index, features in enumerate(sets)]
            )
            for comparison, sets in in_both.items()
        }

    def classes(self) -> Report:
        """Return the distance of each class, and the judge's agreement with the classes asked for."""
        names, labels = self.train.class_names, self.samples.labels
        assert labels is not None
        rows, agreements, confusion = [], [], torch.zeros(len(names), len(names), dtype=torch.long)
        for features in self.features:
            seen = self._classify(features)
            confusion += torch.bincount(labels * len(names) + seen, minlength=len(names) ** 2).reshape(confusion.shape)
            agreements.append((seen == labels).double().mean().item())
            own = _share_by_class(seen == labels, labels, len(names))
            distances = self.in_judge.by_class(features, labels)
            rows.append({name: {**distances[i], "agreement": own[i]} for i, name in enumerate(names)})
        test_labels = self.test.labels
        right = self._classify(self.in_judge.features["test"]) == test_labels
        return {
            "by_class": mean_and_spread(rows),
            "agreement": mean_and_spread(agreements),
            "agreement_floor": _share_by_class(right, test_labels, len(names)),
            "confusion": confusion.tolist(),
        }

    def guidance(self) -> list[Report]:
        """Return agreement, recall and distance for each guidance scale, then for real test images."""
        num_classes, rows = len(self.train.class_names), []
        for scale, images in self.samples.by_guidance.items():
            features = self.in_judge.space.features(images)
            labels = torch.tensor(spread_labels(len(images), num_classes))
            rows.append({"scale": scale, **self._in_short(features, labels)})
        return [*rows, self._floor(len(images))]

    def likelihood(self) -> Report:
        """Return the likelihood bound in bits per dimension, and its parts."""
        assert self.samples.bound is not None
        return self.samples.bound.summary()

    def memorisation(self) -> Report:
        """Return the distances of the first set, and of test images, to their nearest training images."""
        distances, indices = self.in_judge.nearest_training_images(self.features[0])
        held_out, _ = self.in_judge.nearest_training_images(self.in_judge.features["test"][: len(distances)])
        pairs = closest_pairs(distances, indices)
        return {"samples": nearness(distances), "floor": nearness(held_out), "closest_pairs": pairs}

    def samplers(self) -> list[Report]:
        """Return the distance of each sampler and number of steps, then of real test images."""
        rows: list[Report] = []
        for (name, steps), images in self.samples.by_sampler.items():
            figures = self.in_judge.in_short(self.in_judge.space.features(images), self.seed)
            network_calls = calls(SamplingConfig(scheduler=name, steps=steps))
            rows.append({"sampler": name, "steps": steps, "calls": network_calls, **figures})
        return [*rows, self._floor(len(images))]

    def _floor(self, count: int) -> Report:
        features, labels = self.in_judge.features["test"][:count], self.test.labels[:count]
        return {"floor": True, "images": count, **self._in_short(features, labels)}

    def _in_short(self, features: Tensor, labels: Tensor) -> Report:
        agreement = (self._classify(features) == labels).double().mean().item()
        return {"agreement": agreement, **self.in_judge.in_short(features, self.seed)}

    def _classify(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self.judge.head(features).argmax(dim=1)


def make_report(reporter: Reporter, sections: Sequence[str]) -> Report:
    """Return the figures of the sections as numbers, lists and dicts, and the judge's card."""
    report: Report = {"judge": read_card()}
    samples = reporter.samples
    if samples.sets:  # which not every section needs
        report |= {"images": len(samples.sets[0]), "sets": len(samples.sets)}
    for name in sections:
        report[name] = getattr(reporter, name)()
    return report


def _share_by_class(right: Tensor, labels: Tensor, num_classes: int) -> list[float]:
    return [right[labels == label].double().mean().item() for label in range(num_classes)]


def check_report_folder(folder: Path) -> None:
    """Raise `OSError` if a report cannot be written to `folder`, or would replace other files."""
    check_writable(folder / JSON)
    if (folder / PICTURES).exists() and not (folder / JSON).is_file():
        raise FileExistsError(f"{folder / PICTURES} is not a report's folder of pictures; give another --output_dir")


def write_report(
    folder: Path,
    report: Report,
    page: str,
    pictures: Mapping[str, Image.Image],
    seconds: Mapping[str, float],
    speeds: Mapping[tuple[str, int], float],
) -> None:
    """Write a report, each file atomically.

    Times are in a file of their own, so that a seed always gives the same `report.json`.
    """
    by_sampler = {f"{name} {steps}": speed for (name, steps), speed in speeds.items()}
    timings = {"seconds": dict(seconds), "images_per_second": by_sampler}
    texts = {
        name: json.dumps(value, indent=2, allow_nan=False) + "\n"
        for name, value in ((JSON, report), (TIMINGS, timings))
    }
    with atomic_path(folder / PICTURES) as temporary:
        temporary.mkdir()
        for name, picture in pictures.items():
            picture.save(temporary / f"{name}.png")
    for name, text in {**texts, PAGE: page}.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
