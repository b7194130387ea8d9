"""Several processes: sampling, torchrun's restarts, and two nodes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.commands import sample
from pipelines.training.checkpoint import list_checkpoints
from tests.conftest import ROOT
from tests.faults.runs import outcome
from tests.faults.test_processes import children
from tests.scripts.conftest import SMOKE, clean_environment, command

pytestmark = pytest.mark.slow
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file"]
TWO = [*ACCELERATE, "configs/accelerate/two_cpu_processes.yaml"]
STEPS = 40
TRAIN = [*SMOKE, "--tracking.mode", "disabled", "--training.max_steps", str(STEPS), "--training.checkpoint_every", "10"]
TRAIN += ["--training.evaluate_every", str(STEPS), "--training.sample_every", str(STEPS), "--resume", "latest"]
ENDED = "its own lines say why; start all of them again, a training with --resume latest"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(log, *arguments):
    with log.open("w", encoding="utf-8") as out:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=clean_environment(), stdout=out, stderr=out)


def end(*launchers):
    """Kill launchers and what they have started, as when their machines lose power."""
    for launcher in launchers:
        if launcher.poll() is None:
            for pid in [launcher.pid, *children(launcher.pid)]:
                os.kill(pid, signal.SIGKILL)
            launcher.wait()


def wait_for_checkpoint(run_dir, *launchers):
    """Wait for the first checkpoint."""
    deadline = time.monotonic() + 120
    while not list_checkpoints(run_dir / "checkpoints"):
        assert all(launcher.poll() is None for launcher in launchers)
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run of two processes leaves that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = command(*TWO, *TRAIN, "--output_dir", str(run_dir))
    assert ended.returncode == 0, ended.stderr
    return outcome(run_dir)


@pytest.mark.parametrize(
    "options",
    [
        "--num_images 25 --names --gif {0}/film.gif --predictions {0}/predictions.png --images_dir {0}/images",
        "--num_images 5 --interpolate --seeds 3,17 --scheduler ddim --gif {0}/film.gif --noising {0}/noising.png",
        "--seeds 7",
    ],
)
def test_two_processes_sample_what_one_does(options, smoke_run, call, tmp_path):
    written = {}
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        given = ["--pipeline", str(smoke_run[0] / "pipeline"), "--steps", "3", "--output", f"{folder}/grid.png"]
        given += options.format(folder).split()
        if name == "one":
            printed = call(sample, *given)
        else:
            ended = command(*TWO, "scripts/sample.py", *given)
            assert ended.returncode == 0, ended.stderr
            printed = ended.stdout
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        written[name] = files, printed.replace(str(folder), "")
    assert written["one"] == written["two"]


def test_torchrun_restarts_a_killed_process_and_nothing_is_lost(undisturbed, tmp_path):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    launcher = start(log, *torchrun, *TRAIN, "--output_dir", str(run_dir))
    try:
        wait_for_checkpoint(run_dir, launcher)
        first, second = children(launcher.pid)
        os.kill(second, signal.SIGKILL)
        assert launcher.wait(120) == 0, log.read_text(encoding="utf-8")
    finally:
        end(launcher)
    text = log.read_text(encoding="utf-8")
    assert text.count("2 process(es)") == 2
    assert not Path(f"/proc/{first}").exists()
    assert outcome(run_dir) == undisturbed


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_node_ends_the_other_and_both_go_on(killed, undisturbed, tmp_path):
    run_dir, logs = tmp_path / "run", [tmp_path / "0", tmp_path / "1"]

    def nodes(*folders):
        launch = [*ACCELERATE, "configs/accelerate/two_nodes.yaml", "--main_process_ip", "127.0.0.1"]
        launch += ["--main_process_port", str(free_port())]
        return [
            start(log, *launch, "--machine_rank", str(rank), *TRAIN, "--output_dir", str(folder))
            for rank, (log, folder) in enumerate(zip(logs, folders, strict=True))
        ]

    launchers = nodes(run_dir, run_dir)
    try:
        wait_for_checkpoint(run_dir, *launchers)
        end(launchers[killed])
        assert launchers[1 - killed].wait(60) != 0
        errors = [line for line in logs[1 - killed].read_text(encoding="utf-8").splitlines() if ": error" in line]
        assert len(errors) == 1
        assert errors[0].endswith(ENDED)
        if killed:
            launchers = nodes(run_dir, tmp_path / "not_shared")
            assert [launcher.wait(120) != 0 for launcher in launchers] == [True, True]
            for log in logs:
                assert "another one from None; give an output_dir on a disk that all" in log.read_text(encoding="utf-8")
        launchers = nodes(run_dir, run_dir)
        assert [launcher.wait(120) for launcher in launchers] == [0, 0]
    finally:
        end(*launchers)
    assert outcome(run_dir) == undisturbed
