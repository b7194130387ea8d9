"""Class labels: by index, by name, or as mixtures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from denoiser.checks import did_you_mean

# An index, a name, or a mixture: classes with their weights.
Label = int | str | Mapping[int, float] | Mapping[str, float] | Mapping[int | str, float]
OwnLabels = Label | Sequence[Label]
Labels = OwnLabels | Tensor | np.ndarray


@dataclass(frozen=True)
class Classes:
    """Classes of a batch, as mixtures: indices and weights, `(batch, most)`, of sum 1 and padded with 0."""

    indices: Tensor
    weights: Tensor

    def __getitem__(self, rows: Tensor) -> "Classes":
        """Return the classes of the images at `rows`."""
        return Classes(self.indices[rows], self.weights[rows])

    def to(self, device: torch.device) -> "Classes":
        """Return the classes on `device`."""
        return Classes(self.indices.to(device), self.weights.to(device))


class ClassReader:
    """Reader of the class labels of a network; `num_classes` is None for an unconditional one."""

    def __init__(self, num_classes: int | None, names: Sequence[str] | None) -> None:
        self.num_classes = num_classes
        self.names = names or ()
        self.indices = {name.lower(): index for index, name in enumerate(self.names)}

    def index(self, label: int | str) -> int:
        """Return the index of a class given by index or by name, case-insensitively."""
        if self.num_classes is None:
            raise ValueError(f"class label {label!r} was asked of an unconditional network; leave the labels out")
        if isinstance(label, bool) or not isinstance(label, (Integral, str)):
            raise ValueError(f"class label {label!r} is neither an index nor a name")
        if isinstance(label, str) and label.lower() in self.indices:  # a name may be a number
            return self.indices[label.lower()]
        if isinstance(label, str) and not label.removeprefix("-").isdecimal():
            hint = did_you_mean(label, self.indices)
            raise ValueError(f"unknown class '{label}'{hint}; known: {', '.join(self.names)}")
        if not 0 <= int(label) < self.num_classes:
            raise ValueError(f"class label {label} is out of range; the labels are 0 to {self.num_classes - 1}")
        return int(label)

    def name(self, label: Label) -> str:
        """Return the name of a class or a mixture, or its index without names."""
        if isinstance(label, Mapping):
            return " + ".join(self.name(part) for part in label)
        index = self.index(label)
        return self.names[index] if index < len(self.names) else str(index)

    def read(self, labels: OwnLabels, batch_size: int) -> Classes:
        """Return the classes of a batch, from one label for all images or one for each."""
        if isinstance(labels, str) or not isinstance(labels, Sequence):
            labels = [labels] * batch_size
        if len(labels) != batch_size:
            raise ValueError(f"{len(labels)} class labels for {batch_size} images; give one, or one for each image")
        mixtures = [self._mixture(label) for label in labels]
        most = max(len(mixture) for mixture in mixtures)
        filled = [[*mixture, *[(mixture[0][0], 0.0)] * (most - len(mixture))] for mixture in mixtures]
        indices, weights = rearrange(torch.tensor(filled, dtype=torch.float64), "batch most two -> two batch most")
        return Classes(indices.long(), weights.float())

    def _mixture(self, label: Label) -> list[tuple[int, float]]:
        """Return the classes of one image and their weights, of sum 1."""
        if not isinstance(label, Mapping):
            return [(self.index(label), 1.0)]
        if not all(isinstance(weight, Real) for weight in label.values()):
            raise ValueError(f"the mixture {dict(label)} has weights that are no numbers")
        total = sum(label.values())
        if not all(weight >= 0 for weight in label.values()) or not 0 < total < math.inf:
            raise ValueError(f"the mixture {dict(label)} has no weights to go by; give numbers of 0 or more, not all 0")
        return [(self.index(part), weight / total) for part, weight in label.items()]
