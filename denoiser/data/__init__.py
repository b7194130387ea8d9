"""Image sets as tensors in memory."""

from denoiser.data.fashion_mnist import CLASS_NAMES, load_fashion_mnist
from denoiser.data.image_set import ImageSet

__all__ = ["CLASS_NAMES", "ImageSet", "load_fashion_mnist"]
