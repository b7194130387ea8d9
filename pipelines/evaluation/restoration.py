"""Restoration metrics, and the classical methods of scikit-image for comparison.

All images are in [-1, 1], `(count, channels, height, width)`.
"""

from collections.abc import Callable
from statistics import fmean

import numpy as np
import torch
from einops import rearrange
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.restoration import denoise_nl_means, inpaint_biharmonic
from torch import Tensor

DATA_RANGE = 2.0  # from -1 to 1


def psnr(truth: Tensor, restored: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in decibels; infinite for equal images."""
    return _mean(lambda a, b: peak_signal_noise_ratio(a, b, data_range=DATA_RANGE), truth, restored)


def ssim(truth: Tensor, restored: Tensor) -> float:
    """Return the mean structural similarity in windows of 7x7 pixels (Wang et al. 2004)."""
    return _mean(lambda a, b: structural_similarity(a, b, data_range=DATA_RANGE, channel_axis=-1), truth, restored)


def non_local_means(noisy: Tensor, sigma: float) -> Tensor:
    """Denoise images with non-local means (Buades et al. 2005), filter strength 0.9 sigma.

    Args:
        noisy: Images with Gaussian noise.
        sigma: Standard deviation of the noise.
    """
    return _of_images(
        lambda image: denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.9 * sigma, sigma=sigma, fast_mode=False, channel_axis=-1
        ),
        noisy,
    )


def biharmonic(images: Tensor, known: Tensor) -> Tensor:
    """Inpaint images with the biharmonic equation (Damelin & Hoang 2018).

    Args:
        images: Images; unknown pixels are ignored.
        known: 1 for known pixels and 0 for those to fill, `(1, 1, height, width)`.
    """
    hole = known[0, 0].numpy() == 0
    return _of_images(lambda image: inpaint_biharmonic(image * ~hole[..., None], hole, channel_axis=-1), images)


def _of_images(restore: Callable[[np.ndarray], np.ndarray], images: Tensor) -> Tensor:
    restored = np.stack([restore(image).reshape(image.shape) for image in _arrays(images)])  # it drops a single channel
    return rearrange(torch.from_numpy(restored).float().clamp(-1, 1), "b h w c -> b c h w")


def _mean(measure: Callable[[np.ndarray, np.ndarray], float], truth: Tensor, restored: Tensor) -> float:
    return fmean(measure(one, other) for one, other in zip(_arrays(truth), _arrays(restored), strict=True))


def _arrays(images: Tensor) -> np.ndarray:
    return rearrange(images, "b c h w -> b h w c").numpy()
