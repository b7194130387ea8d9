"""Several processes: sampling, torchrun's restarts, two nodes, and Slurm's job."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.commands import sample
from pipelines.training.checkpoint import list_checkpoints
from tests.conftest import DATA_ROOT, ROOT
from tests.faults.runs import outcome
from tests.faults.test_processes import children
from tests.scripts.conftest import SMOKE, clean_environment, command

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


@pytest.mark.slow
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


SHARE_OUT = """
import sys

from denoiser.processes import share_out, start_process

def fail_in_the_second(part):
    if state.process_index == 1:
        raise FloatingPointError("not finite")

state = start_process()
assert share_out(range(5), list) == [[0, 1, 2], [3, 4]]
assert share_out([7], list) == [[7]]
try:
    share_out(range(5), fail_in_the_second)
except Exception as error:
    sys.stdout.write(f"{state.process_index} {type(error).__name__}: {error}\\n")  # at once: two processes write here
"""


@pytest.mark.slow
def test_work_shared_out_fails_in_all_processes_if_it_fails_in_one(tmp_path):
    (tmp_path / "share_out.py").write_text(SHARE_OUT, encoding="utf-8")
    ended = command(*TWO, str(tmp_path / "share_out.py"), PYTHONPATH=str(ROOT))
    assert ended.returncode == 0, ended.stderr
    told = ["0 ValueError: FloatingPointError: not finite", "1 FloatingPointError: not finite"]
    assert sorted(ended.stdout.splitlines()) == told


@pytest.mark.slow
def test_one_of_two_processes_restores(tmp_path):
    given = ["denoise", "--noise", "0.5", "--num_images", "2", "--data.root", str(DATA_ROOT)]
    ended = command(*TWO, "scripts/restore.py", *given, "--output", str(tmp_path / "restored.png"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("picture: ") == ended.stdout.count("| restored") == 1


@pytest.mark.slow
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


@pytest.mark.slow
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


SRUN = """#!/bin/bash
echo "srun $*" >>"$CALLS"
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=0 "$@" & second=$!
wait $first; status=$?
wait $second && exit $status
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CALLS"
if [ "$1" = show ]; then printf '%s\\n' localhost node-b; fi
"""
PYTHON = """#!/bin/bash
echo "$MASTER_ADDR:$MASTER_PORT $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE: $*" >>"$CALLS.$RANK"
[ "$ENDS" = early ] && kill -USR1 $$
[ "$ENDS" = whole ] && mkdir -p "$RUN/pipeline"
[ "$ENDS" != failed ]
"""


@pytest.fixture
def job(tmp_path):
    """Start Slurm's job on two nodes of a process each, with commands that stand for Slurm's; and what they note."""
    bin_, calls = tmp_path / "bin", tmp_path / "calls"
    bin_.mkdir()
    calls.touch()

    def put(name, text):
        (bin_ / name).write_text(text, encoding="utf-8")
        (bin_ / name).chmod(0o755)

    put("srun", SRUN)
    put("scontrol", SCONTROL)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "n[1-2]", "NTASKS": "2", "NTASKS_PER_NODE": "1", "CPUS_PER_TASK": "1"}
    path = os.pathsep.join([str(bin_), str(Path(sys.executable).parent), os.environ["PATH"]])
    told = {"PATH": path, "CALLS": str(calls), "PYTHONPATH": str(ROOT)}
    told |= {f"SLURM_{name}": value for name, value in slurm.items()}

    def start_job(*arguments, **environment):
        script = ["bash", "configs/slurm/train.sbatch", *arguments]
        return subprocess.Popen(script, cwd=ROOT, env={**clean_environment(), **told, **environment})

    return start_job, calls, put


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("ends", "status", "requeued"), [("stopped", 0, 1), ("early", 0, 1), ("whole", 0, 0), ("failed", 1, 0)]
)
def test_a_job_queues_again_if_its_run_was_stopped_and_only_then(ends, status, requeued, job, tmp_path):
    start_job, calls, put = job
    put("python", PYTHON)
    run_dir = tmp_path / "a run"
    assert start_job(str(run_dir), "--config", "a b", ENDS=ends, RUN=str(run_dir)).wait(30) == status
    assert calls.read_text(encoding="utf-8").count("scontrol requeue 7\n") == requeued
    for rank in (0, 1):
        told = calls.with_name(f"calls.{rank}").read_text(encoding="utf-8")
        options = f"--config a b --output_dir {run_dir} --resume latest"
        assert told == f"localhost:20007 {rank} of 2, 0 of 1: scripts/train.py {options}\n"


@pytest.mark.slow
def test_a_job_that_is_signalled_goes_on_when_it_starts_again(undisturbed, job, tmp_path):
    start_job, calls, _ = job
    run_dir = tmp_path / "run"
    arguments = [str(run_dir), *TRAIN[1:-2]]  # the script names itself, and resumes
    script = start_job(*arguments)
    wait_for_checkpoint(run_dir, script)
    (srun,) = children(script.pid)
    for pid in children(srun):  # as Slurm does with --signal=USR1
        os.kill(pid, signal.SIGUSR1)
    assert script.wait(60) == 0
    assert not (run_dir / "pipeline").exists()
    assert calls.read_text(encoding="utf-8").endswith("scontrol requeue 7\n")
    assert start_job(*arguments).wait(120) == 0
    assert calls.read_text(encoding="utf-8").count("requeue") == 1
    found = outcome(run_dir)
    assert found.keys() == undisturbed.keys()
    for name in found.keys() - {"metrics.jsonl"}:  # which has a line more, of the step that was the last
        assert found[name] == undisturbed[name]
