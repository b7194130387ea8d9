"""Image sets and their training batches."""

from denoiser.data.config import DataConfig
from denoiser.data.fashion_mnist import CLASS_NAMES, load_fashion_mnist
from denoiser.data.image_set import ImageSet, RandomBatch, drop_labels, random_batch
from denoiser.data.prepared import load_sets, open_set, prepare

__all__ = [
    "CLASS_NAMES",
    "DataConfig",
    "ImageSet",
    "RandomBatch",
    "drop_labels",
    "load_fashion_mnist",
    "load_sets",
    "open_set",
    "prepare",
    "random_batch",
]
