import pytest
import torch

from pipelines.evaluation.comparison import Comparison
from pipelines.evaluation.judge import load_judge, load_judges
from pipelines.evaluation.spaces import judge_space, pixel_space


@pytest.fixture(scope="session")
def judge():
    return load_judge()


@pytest.fixture(scope="session")
def judges():
    return load_judges()


@pytest.fixture(scope="session")
def in_second_judge(judges, train_images, held_out):
    return Comparison(judge_space(judges[1]), train_images.first(10_000), held_out)  # its moments are of all


@pytest.fixture(scope="session")
def in_judge(judge, train_images, held_out):
    return Comparison(judge_space(judge), train_images, held_out)


@pytest.fixture(scope="session")
def in_pixels(train_images, held_out):
    return Comparison(pixel_space(train_images), train_images, held_out)


def noisy(images, strength):
    """Return uint8 images with Gaussian noise of this many grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * strength
    return (images + noise).round().clamp(0, 255).byte()


def in_colours(images):
    """Return grey images in three colours, of different brightness."""
    return torch.cat([images, images // 2, 255 - images], dim=1)
