import pytest

from pipelines.evaluation.comparison import Comparison
from pipelines.evaluation.judge import load_judge
from pipelines.evaluation.spaces import judge_space, pixel_space


@pytest.fixture(scope="session")
def judge():
    return load_judge()


@pytest.fixture(scope="session")
def in_judge(judge, train_images, held_out):
    return Comparison(judge_space(judge), train_images, held_out)


@pytest.fixture(scope="session")
def in_pixels(train_images, held_out):
    return Comparison(pixel_space(train_images), train_images, held_out)
