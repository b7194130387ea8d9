"""Two processes of one run: how they end together."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.training.checkpoint import check_whole, list_checkpoints
from tests.conftest import ROOT
from tests.scripts.conftest import SMOKE, clean_environment

TWO = "two_cpu_processes.yaml"

pytestmark = pytest.mark.slow


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that are still there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


@pytest.fixture
def launched(tmp_path, request):
    """A run of a launcher that would last, once it has saved a checkpoint; its launcher, folder and log."""
    name = getattr(request, "param", TWO)
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}"]
    run_dir, log = tmp_path / "run", tmp_path / "log"
    options = ["--output_dir", str(run_dir), "--tracking.mode", "disabled", "--training.max_steps", "1000000"]
    with log.open("w", encoding="utf-8") as out:
        launcher = subprocess.Popen(
            [sys.executable, *launch, *SMOKE, *options], cwd=ROOT, env=clean_environment(), stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 200
        while not list_checkpoints(run_dir / "checkpoints"):
            assert launcher.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        assert len(children(launcher.pid)) == 1 + (name == TWO)
        yield launcher, run_dir, log
    finally:
        for pid in children(launcher.pid) if launcher.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        launcher.kill()
        launcher.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("launched", ["one_cpu.yaml", "two_cpu_processes.yaml"], indirect=True)
def test_a_launcher_that_passes_a_signal_on_or_dies_of_it_leaves_no_run_behind(launched, number):
    launcher, run_dir, log = launched
    started = children(launcher.pid)
    launcher.send_signal(number)
    launcher.wait(60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    step = int(log.read_text(encoding="utf-8").split("; --resume latest goes on from step ")[1].split()[0])
    newest = list_checkpoints(run_dir / "checkpoints")[-1]
    assert newest.name == f"step-{step:08d}"
    check_whole(newest)


def test_a_shell_that_ends_leaves_the_run_going_whatever_it_exported(tmp_path):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    log.touch()  # which the shell may not have opened yet when it ends
    options = ["--output_dir", str(run_dir), "--tracking.mode", "disabled", "--training.max_steps", "100"]
    left_over = {"ACCELERATE_MIXED_PRECISION": "no", "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "29500"}
    train = shlex.join([sys.executable, *SMOKE, *options])
    shell = ["sh", "-c", f"nohup {train} >{shlex.quote(str(log))} 2>&1 &"]
    subprocess.run(shell, cwd=ROOT, env={**clean_environment(), **left_over}, check=True)
    deadline = time.monotonic() + 200
    while "\nnext: " not in log.read_text(encoding="utf-8"):
        assert "stopped by" not in log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.2)


def test_one_that_dies_brings_the_other_down_with_the_reason(launched):
    launcher, run_dir, log = launched
    first, second = children(launcher.pid)
    os.kill(second, signal.SIGKILL)
    launcher.wait(30)
    assert launcher.returncode != 0
    assert not Path(f"/proc/{first}").exists()
    assert "Signal 9 (SIGKILL)" in log.read_text(encoding="utf-8")
    for path in list_checkpoints(run_dir / "checkpoints"):
        check_whole(path)
