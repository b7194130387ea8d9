"""What the tests of a GPU share, and the figures that they measure."""

import pytest
import torch

from denoiser.processes import start_process
from tests.pipelines.training.conftest import make_trainer  # noqa: F401
from tests.scripts.conftest import call  # noqa: F401


@pytest.fixture
def device():
    """Return the device of a command."""
    return start_process().device


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    yield
    torch._dynamo.reset()


def pytest_terminal_summary(terminalreporter):
    """List the figures that tests have recorded."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {name}: {value}")
