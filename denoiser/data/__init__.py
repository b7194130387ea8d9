"""Image sets and their training batches."""

from denoiser.data.fashion_mnist import CLASS_NAMES, load_fashion_mnist
from denoiser.data.image_set import ImageSet, RandomBatch, drop_labels, random_batch

__all__ = ["CLASS_NAMES", "ImageSet", "RandomBatch", "drop_labels", "load_fashion_mnist", "random_batch"]
