"""Commands in their own process, and a run that several tests look at."""

import os
import subprocess
import sys

import pytest

from tests.conftest import DATA_ROOT, ROOT

SMOKE = ["scripts/train.py", "--config", "configs/smoke.yaml", "--data.root", str(DATA_ROOT)]


def command(*arguments, **environment):
    """Run a command from the project's folder. Returns how it ended."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "WANDB_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """A run of the smoke config through `accelerate launch`, tracked offline, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    run_dir = home / "run"
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/one_cpu.yaml"]
    ended = command(*launch, *SMOKE, "--output_dir", str(run_dir), HOME=str(home), NETRC=str(home / "netrc"))
    assert ended.returncode == 0, ended.stderr
    return run_dir, ended.stdout
