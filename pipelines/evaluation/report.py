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
from denoiser.data.image_set import evenly
from denoiser.files import atomic_path, check_writable
from pipelines.evaluation.comparison import Comparison, mean_and_spread
from pipelines.evaluation.distances import closest_pairs, nearness
from pipelines.evaluation.inception import Inception
from pipelines.evaluation.judge import accuracy, train_judge
from pipelines.evaluation.judge_networks import ConvolutionalJudge, Judge
from pipelines.evaluation.samples import Samples
from pipelines.evaluation.spaces import beside, network_spaces, pixel_space, rows_like, some_rows
from pipelines.sampling import spread_labels

JSON, PAGE, TIMINGS, PICTURES = "report.json", "report.md", "timings.json", "report"
USED = ConvolutionalJudge.kind  # the classifier of the section `usefulness`
Report = dict[str, Any]


class Reporter:
    """Makes the sections of a report. Set i of the samples is compared with the seed `seed` + i.

    Args:
        samples: Samples of a pipeline, or given images.
        judges: Classifiers of the set, whose features are measured; none for the fixed convolutions.
        train: Training images.
        test: Held-out images; without any, only the memorisation can be measured.
        seed: Seed of the first set of samples.
        inception: Network of the section `inception`.
    """

    def __init__(
        self,
        samples: Samples,
        judges: Sequence[Judge],
        train: ImageSet,
        test: ImageSet | None,
        seed: int,
        inception: Inception | None = None,
    ) -> None:
        self.samples, self.judges, self.train, self.test, self.seed = samples, judges, train, test, seed
        self.inception_network = inception

    @cached_property
    def in_features(self) -> list[Comparison]:
        """Comparisons in the features of each judge, or of the fixed convolutions, made on first use."""
        return [Comparison(space, self.train, self.test) for space in network_spaces(self.judges, self.train)]

    @cached_property
    def in_pixels(self) -> Comparison:
        """Comparison in the principal components of the pixels, made on first use."""
        return Comparison(pixel_space(self.train), self.train, self.test)

    @cached_property
    def features(self) -> list[list[Tensor]]:
        """The features of each set of samples, by network."""
        return [[one.space.features(images) for images in self.samples.sets] for one in self.in_features]

    def distances(self) -> Report:
        """Return all distances in all feature spaces, mean and spread over the sets."""
        assert self.test is not None
        rows = evenly(len(self.samples.sets[0]), min(len(self.train), len(self.test)))  # samples are sorted by class
        labels = None if self.samples.labels is None else self.samples.labels[rows]
        in_pixels = [self.in_pixels.space.features(images) for images in self.samples.sets]
        return {
            comparison.space.name: mean_and_spread(
                [comparison.figures(features[rows], self.seed + index, labels) for index, features in enumerate(sets)]
            )
            for comparison, sets in zip([*self.in_features, self.in_pixels], [*self.features, in_pixels], strict=True)
        }

    def inception(self) -> Report:
        """Return the Inception distances of the samples and of the held-out images to all training images."""
        assert self.inception_network is not None
        assert self.test is not None
        held_out = self.test.images[self._held_out_rows(self.samples.labels, len(self.samples.sets[0]))]
        return self.inception_network.compare(self.train.images, self.samples.sets, held_out)

    def classes(self) -> Report:
        """Return the distance of each class, and each judge's agreement with the classes asked for."""
        one_by_one = zip(self.judges, self.in_features, self.features, strict=True)
        return beside([self._classes(*of_judge) for of_judge in one_by_one])

    def _classes(self, judge: Judge, comparison: Comparison, sets: Sequence[Tensor]) -> Report:
        names, labels = self.train.class_names, self.samples.labels
        assert labels is not None
        assert self.test is not None
        assert self.test.labels is not None
        rows, agreements, confusion = [], [], torch.zeros(len(names), len(names), dtype=torch.long)
        for features in sets:
            seen = _classify(judge, features)
            confusion += torch.bincount(labels * len(names) + seen, minlength=len(names) ** 2).reshape(confusion.shape)
            agreements.append((seen == labels).double().mean().item())
            own = _share_by_class(seen == labels, labels, len(names))
            distances = comparison.by_class(features, labels)
            rows.append({name: {**distances[i], "agreement": own[i]} for i, name in enumerate(names)})
        right = _classify(judge, comparison.features["test"]) == self.test.labels
        return {
            "by_class": mean_and_spread(rows),
            "agreement": mean_and_spread(agreements),
            "agreement_floor": _share_by_class(right, self.test.labels, len(names)),
            "confusion": confusion.tolist(),
        }

    def usefulness(self) -> Report:
        """Return the accuracy on held-out images of a classifier trained on samples, and of one on real images.

        It is the classification accuracy score (Ravuri and Vinyals 2019). The first judge's network is
        trained on the first set of samples, and on as many training images with their class counts.
        """
        images, labels = self.samples.sets[0], self.samples.labels
        assert labels is not None
        assert self.test is not None
        assert self.train.labels is not None
        rows, names = evenly(len(images), len(self.train)), self.train.class_names
        real = rows_like(self.train, labels[rows])
        sets = {
            "samples": ImageSet(images[rows], labels[rows], names),
            "real": ImageSet(self.train.images[real], self.train.labels[real], names),
        }
        scores = {name: accuracy(train_judge(USED, images, self.seed), self.test) for name, images in sets.items()}
        return {"images": len(rows), "held_out": len(self.test), **scores}

    def guidance(self) -> list[Report]:
        """Return agreement, recall and distance for each guidance scale, then for real held-out images."""
        rows = []
        for scale, images in self.samples.by_guidance.items():
            labels = torch.tensor(spread_labels(len(images), len(self.train.class_names)))
            rows.append({"scale": scale, **self._in_short(images, labels)})
        return [*rows, self._floor(labels, len(images))]

    def likelihood(self) -> Report:
        """Return the likelihood bound in bits per dimension, and its parts."""
        assert self.samples.bound is not None
        return self.samples.bound.summary()

    def memorisation(self) -> Report:
        """Return distances of the first set, and of held-out images, to their nearest training images, by space."""
        in_pixels = self.in_pixels.space.features(self.samples.sets[0])
        first_sets = [*(sets[0] for sets in self.features), in_pixels]
        return {
            comparison.space.name: self._nearest(comparison, features)
            for comparison, features in zip([*self.in_features, self.in_pixels], first_sets, strict=True)
        }

    def samplers(self) -> list[Report]:
        """Return the distance of each sampler and number of steps, then of real held-out images."""
        rows: list[Report] = []
        for (name, steps), images in self.samples.by_sampler.items():
            network_calls = self.samples.calls_by_sampler[name, steps]
            rows.append({"sampler": name, "steps": steps, "calls": network_calls, **self._in_short(images, None)})
        conditional, num_classes = self.samples.labels is not None, len(self.train.class_names)
        labels = torch.tensor(spread_labels(len(images), num_classes)) if conditional else None
        return [*rows, self._floor(labels, len(images))]

    def _held_out_rows(self, labels: Tensor | None, count: int) -> Tensor:
        """Return the rows of a floor: `count` images, with the class counts of the samples' labels if there are any."""
        assert self.test is not None
        return some_rows(self.test, count) if labels is None else rows_like(self.test, labels)

    def _floor(self, labels: Tensor | None, count: int) -> Report:
        assert self.test is not None
        rows = self._held_out_rows(labels, count)
        own = None if self.test.labels is None else self.test.labels[rows]
        return {"floor": True, "images": count, **self._in_short(self.test.images[rows], own)}

    def _in_short(self, images: Tensor, labels: Tensor | None) -> Report:
        figures = []
        for index, comparison in enumerate(self.in_features):
            features = comparison.space.features(images)
            own = comparison.in_short(features, self.seed)
            if self.judges and labels is not None:
                right = _classify(self.judges[index], features) == labels
                own = {"agreement": right.double().mean().item(), **own}
            figures.append(own)
        return beside(figures)

    def _nearest(self, comparison: Comparison, features: Tensor) -> Report:
        """Summarise the distances to the nearest training images, beside those of as many held-out images."""
        distances, indices = comparison.nearest_training_images(features)
        figures = {"samples": nearness(distances), "closest_pairs": closest_pairs(distances, indices)}
        if self.test is not None:
            rows = self._held_out_rows(self.samples.labels, len(features))
            held_out, _ = comparison.nearest_training_images(comparison.features["test"][rows])
            figures["floor"] = nearness(held_out)
        return figures


def make_report(reporter: Reporter, sections: Sequence[str], notes: Sequence[str] = ()) -> Report:
    """Return the figures of the sections as numbers, lists and dicts, the judges' cards, and what is left out."""
    report: Report = {judge.kind: judge.facts for judge in reporter.judges}
    if notes:
        report["notes"] = list(notes)
    samples = reporter.samples
    if samples.sets:  # which not every section needs
        report |= {"images": len(samples.sets[0]), "sets": len(samples.sets)}
    for name in sections:
        report[name] = getattr(reporter, name)()
    return report


def _classify(judge: Judge, features: Tensor) -> Tensor:
    with torch.no_grad():
        return judge.head(features).argmax(dim=1)


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
