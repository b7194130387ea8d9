"""Fréchet distance in the features of Inception, the FID of papers (Heusel et al. 2017), in its two usual forms."""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from PIL import Image
from torch import Tensor, nn

from denoiser.files import sha256
from pipelines.evaluation.distances import Moments, frechet_distance

DIGEST = "6726825d"  # the beginning of the weights' SHA-256
WEIGHTS = f"weights-inception-2015-12-05-{DIGEST}.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SIDE = 299  # of Inception's input
SMALLEST = 32  # pixels a side, below which nearly all that Inception sees is interpolation
BATCH_SIZE = 50


def default_weights() -> Path:
    """Return where torch-fidelity and torchmetrics keep Inception's weights: PyTorch's hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def why_not(weights: Path, channels: int) -> str | None:
    """Return why Inception cannot measure images of these channels, or None."""
    if channels not in (1, 3):
        return f"Inception sees grey and colour, and the images have {channels} channels"
    if not weights.is_file():
        return f"{weights} is missing; put {ADDRESS} there, or give its path with --inception_weights"
    return None


class Inception:
    """Inception-v3 of the FID, as torch-fidelity has it.

    Args:
        weights: File of the weights.
        device: Where to compute.

    Raises:
        ImportError: If torch-fidelity is not installed.
        ValueError: If the file does not have Inception's weights.
    """

    def __init__(self, weights: Path, device: torch.device | None = None) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        self.device, self.sha256 = device or torch.device("cpu"), sha256(weights)
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # before it is unpickled without restrictions
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
        except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, AttributeError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{weights} does not have Inception's weights ({reason}); put {ADDRESS} there") from error
        body = [layer for name, layer in network.named_children() if name != "fc"]
        self.network = nn.Sequential(*body, nn.Flatten()).to(self.device).eval()
        self.resize: dict[str, Callable[[Tensor], Tensor]] = {
            "torch-fidelity": lambda images: interpolate_bilinear_2d_like_tensorflow1x(
                images.to(self.device).float(), size=(SIDE, SIDE), align_corners=False
            ),
            "clean-fid": clean_resize,
        }

    def compare(self, train: Tensor, sets: Sequence[Tensor], held_out: Tensor) -> dict[str, Any]:
        """Return the distances of sets of images, and of held-out ones, to training images.

        Args:
            train: All training images, `(count, channels, height, width)` in uint8, as all the others.
            sets: Sets of samples, of one count.
            held_out: Real images for the floor, as many if there are.
        """
        figures: dict[str, Any] = {}
        images = len(train) + len(held_out) + sum(map(len, sets))
        with tqdm(total=images * len(self.resize), unit="image", desc="Inception") as bar:
            for name in self.resize:
                real, *others = (self.moments(name, each, bar.update) for each in (train, held_out, *sets))
                floor, *distances = (frechet_distance(real, other) for other in others)
                figures[name] = {"samples": distances, "floor": floor}
        counts = {"images": len(sets[0]), "floor_images": len(held_out), "training_images": len(train)}
        return {**counts, "weights": self.sha256, "distances": figures}

    def moments(self, name: str, images: Tensor, on_images: Callable[[int], object] = lambda count: None) -> Moments:
        """Return the moments of the 2,048 features of uint8 images, resized as the package `name` does."""

        def told() -> Iterator[Tensor]:
            for features in self.features(name, images):
                yield features
                on_images(len(features))

        return Moments.of_batches(told())

    @torch.no_grad()
    def features(self, name: str, images: Tensor) -> Iterator[Tensor]:
        """Yield the features of each batch, `(batch, 2048)` in float64."""
        for batch in images.split(BATCH_SIZE):
            with torch.autocast(self.device.type, enabled=False):
                resized = self.resize[name](batch.expand(-1, 3, -1, -1)).to(self.device)
                features = self.network((resized - 128) / 128)
            yield features.cpu().double()


def clean_resize(images: Tensor) -> Tensor:
    """Resize uint8 images to 299x299 with Pillow's bicubic filter in float32 (Parmar et al. 2022)."""
    levels = images.cpu().float().numpy()
    planes = [
        np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for image in levels
        for plane in image
    ]
    return torch.from_numpy(np.stack(planes)).clamp(0, 255).reshape(*images.shape[:2], SIDE, SIDE)
