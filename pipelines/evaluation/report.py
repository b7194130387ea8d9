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
from pipelines.evaluation.comparison import Comparison, mean_and_spread
from pipelines.evaluation.distances import closest_pairs, nearness
from pipelines.evaluation.inception import Inception
from pipelines.evaluation.judge import Judge
from pipelines.evaluation.samples import Samples, calls
from pipelines.evaluation.spaces import fixed_space, judge_space, pixel_space, some_rows
from pipelines.sampling import spread_labels

JSON, PAGE, TIMINGS, PICTURES = "report.json", "report.md", "timings.json", "report"
Report = dict[str, Any]


class Reporter:
    """Makes the sections of a report. Set i of the samples is compared with the seed `seed` + i.

    Args:
        samples: Samples of a pipeline, or given images.
        judge: Classifier of the set, whose features are measured; None for the fixed convolutions.
        train: Training images.
        test: Held-out images; without any, only the memorisation can be measured.
        seed: Seed of the first set of samples.
        inception: Network of the section `inception`.
    """

    def __init__(
        self,
        samples: Samples,
        judge: Judge | None,
        train: ImageSet,
        test: ImageSet | None,
        seed: int,
        inception: Inception | None = None,
    ) -> None:
        self.samples, self.judge, self.train, self.test, self.seed = samples, judge, train, test, seed
        self.inception_network = inception

    @cached_property
    def in_features(self) -> Comparison:
        """Comparison in a network's features, made on first use."""
        space = fixed_space(self.train) if self.judge is None else judge_space(self.judge)
        return Comparison(space, self.train, self.test)

    @cached_property
    def in_pixels(self) -> Comparison:
        """Comparison in the principal components of the pixels, made on first use."""
        return Comparison(pixel_space(self.train), self.train, self.test)

    @cached_property
    def features(self) -> list[Tensor]:
        """The network's features of each set of samples."""
        return [self.in_features.space.features(images) for images in self.samples.sets]

    def distances(self) -> Report:
        """Return all distances in both feature spaces, mean and spread over the sets."""
        assert self.test is not None
        count = min(len(self.train), len(self.test))
        in_both = {
            self.in_features: self.features,
            self.in_pixels: [self.in_pixels.space.features(images[:count]) for images in self.samples.sets],
        }
        return {
            comparison.space.name: mean_and_spread(
                [comparison.figures(features[:count], self.seed + index) for index, features in enumerate(sets)]
            )
            for comparison, sets in in_both.items()
        }

    def inception(self) -> Report:
        """Return the Inception distances of the samples and of the held-out images to all training images."""
        assert self.inception_network is not None
        assert self.test is not None
        held_out = self.test.images[some_rows(self.test, len(self.samples.sets[0]))]
        return self.inception_network.compare(self.train.images, self.samples.sets, held_out)

    def classes(self) -> Report:
        """Return the distance of each class, and the judge's agreement with the classes asked for."""
        names, labels = self.train.class_names, self.samples.labels
        assert labels is not None
        assert self.test is not None
        assert self.test.labels is not None
        rows, agreements, confusion = [], [], torch.zeros(len(names), len(names), dtype=torch.long)
        for features in self.features:
            seen = self._classify(features)
            confusion += torch.bincount(labels * len(names) + seen, minlength=len(names) ** 2).reshape(confusion.shape)
            agreements.append((seen == labels).double().mean().item())
            own = _share_by_class(seen == labels, labels, len(names))
            distances = self.in_features.by_class(features, labels)
            rows.append({name: {**distances[i], "agreement": own[i]} for i, name in enumerate(names)})
        right = self._classify(self.in_features.features["test"]) == self.test.labels
        return {
            "by_class": mean_and_spread(rows),
            "agreement": mean_and_spread(agreements),
            "agreement_floor": _share_by_class(right, self.test.labels, len(names)),
            "confusion": confusion.tolist(),
        }

    def guidance(self) -> list[Report]:
        """Return agreement, recall and distance for each guidance scale, then for real held-out images."""
        num_classes, rows = len(self.train.class_names), []
        for scale, images in self.samples.by_guidance.items():
            features = self.in_features.space.features(images)
            labels = torch.tensor(spread_labels(len(images), num_classes))
            rows.append({"scale": scale, **self._in_short(features, labels)})
        return [*rows, self._floor(len(images))]

    def likelihood(self) -> Report:
        """Return the likelihood bound in bits per dimension, and its parts."""
        assert self.samples.bound is not None
        return self.samples.bound.summary()

    def memorisation(self) -> Report:
        """Return distances of the first set, and of held-out images, to their nearest training images, by space."""
        in_pixels = self.in_pixels.space.features(self.samples.sets[0])
        return {
            self.in_features.space.name: _nearest(self.in_features, self.features[0]),
            self.in_pixels.space.name: _nearest(self.in_pixels, in_pixels),
        }

    def samplers(self) -> list[Report]:
        """Return the distance of each sampler and number of steps, then of real held-out images."""
        rows: list[Report] = []
        for (name, steps), images in self.samples.by_sampler.items():
            figures = self.in_features.in_short(self.in_features.space.features(images), self.seed)
            network_calls = calls(SamplingConfig(scheduler=name, steps=steps))
            rows.append({"sampler": name, "steps": steps, "calls": network_calls, **figures})
        return [*rows, self._floor(len(images))]

    def _floor(self, count: int) -> Report:
        assert self.test is not None
        rows, labels = some_rows(self.test, count), self.test.labels
        features = self.in_features.features["test"][rows]
        return {"floor": True, "images": count, **self._in_short(features, None if labels is None else labels[rows])}

    def _in_short(self, features: Tensor, labels: Tensor | None) -> Report:
        figures = self.in_features.in_short(features, self.seed)
        if self.judge is None or labels is None:
            return figures
        return {"agreement": (self._classify(features) == labels).double().mean().item(), **figures}

    def _classify(self, features: Tensor) -> Tensor:
        assert self.judge is not None
        with torch.no_grad():
            return self.judge.head(features).argmax(dim=1)


def make_report(reporter: Reporter, sections: Sequence[str], notes: Sequence[str] = ()) -> Report:
    """Return the figures of the sections as numbers, lists and dicts, the judge's card, and what is left out."""
    report: Report = {} if reporter.judge is None else {"judge": reporter.judge.facts}
    if notes:
        report["notes"] = list(notes)
    samples = reporter.samples
    if samples.sets:  # which not every section needs
        report |= {"images": len(samples.sets[0]), "sets": len(samples.sets)}
    for name in sections:
        report[name] = getattr(reporter, name)()
    return report


def _nearest(comparison: Comparison, features: Tensor) -> Report:
    """Summarise the distances to the nearest training images, beside those of as many held-out images."""
    distances, indices = comparison.nearest_training_images(features)
    figures = {"samples": nearness(distances), "closest_pairs": closest_pairs(distances, indices)}
    if "test" in comparison.sets:
        rows = some_rows(comparison.sets["test"], len(features))
        held_out, _ = comparison.nearest_training_images(comparison.features["test"][rows])
        figures["floor"] = nearness(held_out)
    return figures


def _share_by_class(right: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Return the share of each class that is right; None for a class without an image."""
    own = [right[labels == label].double() for label in range(num_classes)]
    return [share.mean().item() if len(share) else None for share in own]


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
