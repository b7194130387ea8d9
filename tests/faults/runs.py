"""Runs of `scripts/train.py` in processes that can be killed and whose system calls can fail.

The processes are forked from one that has imported everything and computed nothing, which makes a start cheap.
"""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from accelerate.utils import DistributedType
from safetensors.torch import save_file

from denoiser import processes
from pipelines.commands import train
from pipelines.training import trainer
from pipelines.training.checkpoint import check_whole
from tests.conftest import DATA_ROOT, ROOT

SOAK = bool(os.environ.get("SOAK"))  # whether to try all that can be tried
STEPS = 24
OPTIONS = {
    "config": ROOT / "configs" / "smoke.yaml",
    "data.root": DATA_ROOT,
    "tracking.mode": "disabled",
    "training.max_steps": STEPS,
    "training.checkpoint_every": 3,
    "training.checkpoints_kept": 2,
    "training.log_every": 2,
    "training.sample_every": 6,
    "training.evaluate_every": 12,
    "training.evaluation_images": 100,
    "training.mixed_precision": "no",
    "sampling.num_images": 4,
    "sampling.steps": 2,
    "resume": "latest",
}
BY_CLOCK = {"seconds", "images_per_second", "step_milliseconds", "data_milliseconds"}
FAULTS = Path(__file__).with_name("faults.c")


def start_server(library: Path | None = None) -> "multiprocessing.context.ForkServerContext":
    """Return what starts processes; with a library, its functions come before the system's in all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    if library is not None:
        os.environ["LD_PRELOAD"] = str(library)
    try:
        first = context.Process(target=int)  # which starts the server too
        first.start()
        first.join()
    finally:
        os.environ.pop("LD_PRELOAD", None)
    return context


def build_library(folder: Path) -> Path:
    """Compile `faults.c`."""
    library = folder / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, FAULTS, "-ldl"], check=True)
    return library


class Run:
    """One run in a process of its own, or in several."""

    def __init__(self, context, run_dir, log, environment=None, processes=1, **options) -> None:
        arguments = [f"--{name}={value}" for name, value in {**OPTIONS, "output_dir": run_dir, **options}.items()]
        environments = [environment or {}]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": processes}
            shared |= {"LOCAL_WORLD_SIZE": processes, **environments[0]}
            environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
        self.log = Path(log)
        self.log.unlink(missing_ok=True)
        self.processes = [
            context.Process(
                target=_train, args=(arguments, str(log), {name: str(value) for name, value in own.items()})
            )
            for own in environments
        ]
        for process in self.processes:
            process.start()

    def ended(self, seconds: float | None = None) -> int | None:
        """Wait for the end, so many seconds at most. Returns the highest exit status, or None if it goes on."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for process in self.processes:
            process.join(deadline and max(0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        return None if None in statuses else max(statuses, key=abs)

    def kill(self) -> None:
        """Kill all of its processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def as_if_gpus() -> None:
    """Tell Accelerate that several processes have GPUs, or it has no FSDP for them."""
    prepare_cpu = processes.prepare_cpu

    def mislead(state):
        prepare_cpu(state)
        state.distributed_type = DistributedType.MULTI_GPU

    processes.prepare_cpu = mislead


def keep_averages(folder: Path) -> None:
    """Have each process save its own average of the weights at the end."""
    save_pipeline = trainer.Trainer._save_pipeline

    def save(self, tracker):
        averages = {str(index): tensor.contiguous() for index, tensor in enumerate(self.learner.ema.shadow_params)}
        save_file(averages, folder / f"{self.accelerator.process_index}.safetensors")
        save_pipeline(self, tracker)

    trainer.Trainer._save_pipeline = save


def _train(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.chdir(ROOT)
    sys.argv = ["train.py", *arguments]
    os.environ.update(environment)
    if "ACCELERATE_USE_FSDP" in environment:
        as_if_gpus()
    if folder := environment.get("AVERAGES"):
        keep_averages(Path(folder))
    try:
        train.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def outcome(run_dir: Path) -> dict[str, object]:
    """Return all that a run left, but for what the clock tells."""
    found: dict[str, object] = {}
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if not path.is_file() or path.name in {"manifest.json", "README.md", "config.yaml"}:
            continue  # of which the first two have sums and minutes, and the last the folder's name
        if ".partial" in name:
            continue  # what could not be deleted; the next start does
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = [{key: value for key, value in line.items() if key not in BY_CLOCK} for line in lines]
        elif path.name == "state.json":
            state = json.loads(path.read_text(encoding="utf-8"))
            del state["progress"]["seconds"]
            found[name] = state
        elif path.name.startswith("random_states"):
            continue  # of the libraries' generators, which nothing here draws from
        else:
            found[name] = path.read_bytes()
    return found


def check_checkpoints(run_dir: Path) -> None:
    """Raise `ValueError` unless every checkpoint of a run is whole."""
    for path in (run_dir / "checkpoints").glob("step-*"):
        check_whole(path)


def fresh(run_dir: Path) -> Path:
    """Return the folder for a new run."""
    shutil.rmtree(run_dir, ignore_errors=True)
    return run_dir
