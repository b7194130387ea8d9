"""Two processes of one run: how they end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from denoiser.training.checkpoint import check_whole, list_checkpoints
from tests.conftest import ROOT
from tests.scripts.conftest import SMOKE, clean_environment

LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two_cpu_processes.yaml"]


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that are still there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def launched(tmp_path):
    """A run of two processes that would last, once it has saved a checkpoint; its launcher, folder and log."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    options = ["--output_dir", str(run_dir), "--tracking.mode", "disabled", "--training.max_steps", "1000000"]
    with log.open("w") as out:
        launcher = subprocess.Popen(
            [sys.executable, *LAUNCH, *SMOKE, *options], cwd=ROOT, env=clean_environment(), stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 200
        while not list_checkpoints(run_dir / "checkpoints"):
            assert launcher.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert len(children(launcher.pid)) == 2
        yield launcher, run_dir, log
    finally:
        for pid in children(launcher.pid) if launcher.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        launcher.kill()
        launcher.wait()


def test_a_signal_ends_both_with_a_checkpoint(launched):
    launcher, run_dir, log = launched
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    assert "stopped by SIGTERM; --resume latest goes on from step " in log.read_text()
    step = int(log.read_text().split("goes on from step ")[1].split()[0])
    newest = list_checkpoints(run_dir / "checkpoints")[-1]
    assert newest.name == f"step-{step:08d}"
    check_whole(newest)


def test_one_that_dies_brings_the_other_down_with_the_reason(launched):
    launcher, run_dir, log = launched
    first, second = children(launcher.pid)
    os.kill(second, signal.SIGKILL)
    launcher.wait(30)
    assert launcher.returncode != 0
    assert not Path(f"/proc/{first}").exists()
    assert "Signal 9 (SIGKILL)" in log.read_text()
    for path in list_checkpoints(run_dir / "checkpoints"):
        check_whole(path)
