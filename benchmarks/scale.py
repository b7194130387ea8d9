"""What growth costs: training speed and memory of command lines of `scripts/train.py`, each in processes of its own."""

import math
import multiprocessing
import os
import resource
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import torch
import yaml

from benchmarks.machine import operations_per_image
from pipelines.commands.parsed_run import ParsedRun
from pipelines.commands.train import load_images
from pipelines.training import Learner, start_accelerator

WARM_UP = 3  # steps


@dataclass(frozen=True)
class Cell:
    """A command line of `scripts/train.py`, and the table that it stands in.

    `processes` is a number of processes of one thread each; None for one process of all threads.
    """

    table: str
    name: str
    arguments: tuple[str, ...]
    processes: int | None


def read_cells(path: Path, data_root: str) -> list[Cell]:
    """Read a file of tables; the rows of a table named "processes …" are their numbers."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = (*shlex.split(content["arguments"]), "--data.root", data_root)
        return [
            Cell(table, name, (*base, *shlex.split(arguments)), int(name) if table.startswith("processes") else None)
            for table, rows in content["tables"].items()
            for name, arguments in rows.items()
        ]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); benchmarks/configs/scale.yaml shows how") from error


def scale_rows(cells: Sequence[Cell], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Measure cells in turns, a number of rounds."""
    measured: dict[Cell, list[dict[str, float]]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell, figures in measured.items():
            figures.append(_measure(cell, seconds))
    return [
        {
            "table": cell.table,
            "name": cell.name,
            "processes": cell.processes or 1,
            **{key: median(each[key] for each in figures) for key in figures[0]},
        }
        for cell, figures in measured.items()
    ]


def power(rows: Sequence[Mapping[str, Any]], cause: str, effect: str) -> float:
    """Return the exponent p of effect ~ cause^p, fitted to rows in logarithms."""
    return linear_regression(*([math.log(row[key]) for row in rows] for key in (cause, effect))).slope


def _measure(cell: Cell, seconds: float) -> dict[str, float]:
    """Train in new processes; returns the figures of the first."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours, theirs = context.Pipe()
    workers = []
    for rank in range(cell.processes or 1):
        given: dict[str, str] = {}
        if cell.processes not in (None, 1):
            given |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
            given |= {name: str(cell.processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
            given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        workers.append(context.Process(target=_work, args=(cell, seconds, given, theirs)))
    for worker in workers:
        worker.start()
    theirs.close()
    try:
        figures: dict[str, float] = ours.recv()
    except EOFError:
        raise ValueError(f"the training '{cell.name}' ended without figures; its own lines say why") from None
    for worker in workers:
        worker.join()
    return figures


def _work(cell: Cell, seconds: float, exported: Mapping[str, str], answers: Connection) -> None:
    os.environ.update(exported)
    sys.argv = ["train.py", *cell.arguments]
    run = ParsedRun(cell.arguments)
    accelerator = start_accelerator(run.config)
    if cell.processes is not None:
        torch.set_num_threads(1)
    images, _ = load_images(run.data, run.config.output_dir)
    model, noise_schedule = run.build(images.shape, len(images.class_names) or None)
    operations = operations_per_image(model)
    learner = Learner(run.config.training, model, noise_schedule, accelerator, images)
    for _ in range(WARM_UP):
        learner.take_step(0.5)
    started, steps, going = time.perf_counter(), 0, True
    while going:
        learner.take_step(0.5)
        steps += 1
        flag = torch.tensor([time.perf_counter() - started < seconds], dtype=torch.float32, device=accelerator.device)
        going = bool(accelerator.reduce(flag, "max"))
    spent = time.perf_counter() - started
    if accelerator.is_main_process:
        answers.send(
            {
                "parameters": float(model.num_parameters()),
                "operations_per_image": float(operations),
                "pixels": float(images.shape[1] * images.shape[2]),
                "images_per_second": steps * learner.images_per_step / spent,
                "peak_gibibytes": _peak_memory() / 2**30,
            }
        )
    accelerator.end_training()


def _peak_memory() -> int:
    """Return the most memory of this process until now in bytes: on a GPU what its tensors took."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
