"""Real data and real, tiny components."""

import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DDPMScheduler

from denoiser import BasicUNet, UNet
from denoiser.data import ImageSet, load_fashion_mnist

ROOT = Path(__file__).parent.parent
DATA_ROOT = ROOT / "data"


def pytest_configure():
    """Give each of several pytest processes a core of its own: two that compute on all of them wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items):
    """Skip the tests of a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


def another_process():
    """Forget Accelerate's state, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def randomised(model):
    """Give every parameter, the zero-initialised ones too, small random values, so that every layer counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def tiny_unet(**options):
    """Return a small `UNet`, conditional on ten classes unless told otherwise."""
    torch.manual_seed(0)
    defaults = {
        "block_out_channels": (16, 32),
        "attention_levels": (1,),
        "attention_head_dim": 16,
        "num_class_embeds": 10,
    }
    return randomised(UNet(**{**defaults, **options}))


def tiny_basic_unet(**options):
    """Return a narrow `BasicUNet` with the timestep."""
    torch.manual_seed(0)
    return randomised(BasicUNet(**{"block_out_channels": (8, 16, 32), "time_conditioning": True, **options}))


@pytest.fixture
def scheduler():
    return DDPMScheduler()


@pytest.fixture(scope="session")
def train_images():
    return load_fashion_mnist(DATA_ROOT, "train")


@pytest.fixture(scope="session")
def held_out():
    return load_fashion_mnist(DATA_ROOT, "test")


@pytest.fixture(scope="session")
def some_images(train_images):
    """Return the first 256 training images."""
    return ImageSet(train_images.images[:256], train_images.labels[:256], train_images.class_names)


@pytest.fixture
def noise():
    return torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Let every test make its own Accelerator: Accelerate keeps one state for the process."""
    yield
    another_process()
