"""Benchmark networks in turns on one machine: python scripts/benchmark.py train."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import patch_environment, tqdm

from benchmarks.entries import Field, code_trees, read_field
from benchmarks.machine import processor
from benchmarks.profile import profiles
from benchmarks.quality import longest_of, sampler_comparison, stock_comparison
from benchmarks.race import Training, race
from benchmarks.scale import read_cells, scale_rows
from benchmarks.speed import TORCHVISION, feeding_speeds, sampling_speeds
from benchmarks.speedrun import read_runner, run_seeds, speedrun_page
from benchmarks.tables import (
    profile_table,
    reach_table,
    sampler_table,
    scale_tables,
    speed_table,
    stock_table,
    train_rows,
    train_table,
)
from denoiser.checks import check_positive
from denoiser.files import atomic_path, check_writable
from denoiser.processes import start_process
from pipelines.commands.parser import Mode, Parser, call_mode, command, subcommands

SAMPLERS = ["sde-dpmsolver++", "dpmsolver++", "unipc", "ddim"]
CONFIGS = Path(__file__).parent / "configs"
NETWORKS, QUICK, SCALE = (CONFIGS / f"{name}.yaml" for name in ("networks", "quick", "scale"))
BAR = "training {percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left, and the judging"
FEEDING_BATCH_SIZE, FEEDING_BATCHES = 128, 50
Figures = tuple[list[dict[str, Any]], str]


def common_options(parser: Parser, mode: Mode) -> None:
    """Add the options of all modes."""
    parser.add_argument("--output_dir", type=str, default="runs/benchmark", help="folder of tables and trainings")
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    if mode is sample:
        parser.add_argument("--compile", action="store_true", help="measure each network compiled, too")
    if mode not in WITHOUT_ENTRIES:
        parser.add_argument("--entries", type=str | None, help=f"YAML file of entries (default: {NETWORKS.name})")
        parser.add_argument("--quick", action="store_true", help="the table of README.md, half an hour")


def field_of(options: Any) -> Field:
    """Read the entries."""
    if options.quick and options.entries:
        raise ValueError(f"quick is {QUICK.name}, and entries is {options.entries}; give one of them")
    return read_field(Path(options.entries or (QUICK if options.quick else NETWORKS)), options.data_root)


def check_numbers(**options: list[int]) -> None:
    """Raise `ValueError` if a list is empty, or one of its numbers is not positive."""
    for name, numbers in options.items():
        if not numbers:
            raise ValueError(f"{name} is empty; give at least one number")
        for number in numbers:
            check_positive(**{name: number})


def all_trainings(field: Field, seeds: int, folder: Path) -> list[Training]:
    """Return all trainings of the entries."""
    return [
        Training.of(entry, seconds, seed, folder / "trainings")
        for entry in field.entries.values()
        for seconds in entry.seconds
        for seed in range(seeds)
    ]


def finished_trainings(field: Field, folder: Path) -> list[Training]:
    """Return the finished trainings of the first seed, or raise `ValueError` if there are none."""
    if code_trees() is None:
        raise ValueError("the code has uncommitted changes, of which no training is kept; commit them, and train")
    finished = [training for training in all_trainings(field, 1, folder) if training.result is not None]
    if not finished:
        raise ValueError(f"no training is in {folder}; make them first, with the same options and train")
    return finished


def with_bar(rows: Iterable[dict[str, Any]], count: int | None = None) -> list[dict[str, Any]]:
    """Collect rows with a progress bar, which an error before the first row does not show."""
    return [*tqdm(rows, desc="sampling", total=count, unit="row", delay=0.1)]


@contextmanager
def training_bar(length: float) -> Iterator[Callable[[float], object]]:
    """Show a progress bar of some seconds of training; yields a function that takes the seconds of each turn."""
    with tqdm(total=length, bar_format=BAR, mininterval=15, disable=not length) as bar:
        yield lambda seconds: bar.update(min(seconds, length - bar.n))


def train(field: Field, folder: Path, seeds: int = 1) -> Figures:
    """Quality after some seconds of training.

    Args:
        seeds: Trainings of each entry and length.
    """
    check_positive(seeds=seeds)
    if code_trees() is not None:
        return race_of(field, folder, seeds)
    print("the code has uncommitted changes: no training is kept", file=sys.stderr)
    with TemporaryDirectory() as kept_nowhere:
        return race_of(field, Path(kept_nowhere), seeds)


def race_of(field: Field, folder: Path, seeds: int) -> Figures:
    """Make the trainings that are not finished, in races."""
    trainings = all_trainings(field, seeds, folder)
    todo = {training.folder: training.seconds for training in trainings if training.result is None}
    with training_bar(sum(todo.values())) as on_turn:
        race(trainings, on_turn)
    rows = train_rows(trainings)
    return rows, f"{train_table(rows, field.baseline)}\n{reach_table(rows, field.baseline)}"


def sample(
    field: Field,
    compile: bool = False,
    rounds: int = 3,
    steps: list[int] = [20],  # noqa: B006 - nothing changes it
    batch_sizes: list[int] = [64, 512],  # noqa: B006
) -> Figures:
    """Sampling speed.

    Args:
        rounds: Rounds that count.
        steps: Numbers of steps, such as [1,4,20].
        batch_sizes: Images in a batch.
    """
    check_positive(rounds=rounds)
    check_numbers(steps=steps, batch_sizes=batch_sizes)
    # An earlier compilation would cost nothing.
    with TemporaryDirectory() as empty, patch_environment(torchinductor_cache_dir=empty):
        rows = sampling_speeds([*field.entries.values()], batch_sizes, steps, rounds, compile)
    return rows, speed_table(rows, field.baseline)


def stock(field: Field, folder: Path, images: int = 512) -> Figures:
    """After train: sampling speed at the quality of the stock DDPMPipeline.

    Args:
        images: Images of a distance.
    """
    finished = finished_trainings(field, folder)
    baseline = longest_of(field.baseline, finished)
    others = [training for training in finished if training.entry.name != field.baseline]
    if not others:
        raise ValueError(f"all trainings in {folder} are of '{field.baseline}'; make others to compare, with train")
    rows = with_bar(stock_comparison(baseline, others, images))
    return rows, stock_table(rows)


def samplers(
    field: Field,
    folder: Path,
    samplers: list[str] = SAMPLERS,
    steps: list[int] = [20],  # noqa: B006 - nothing changes it
    seconds: float | None = None,
    images: int = 2048,
) -> Figures:
    """After train: quality with each sampler.

    Args:
        samplers: Names of samplers.
        steps: Numbers of steps, such as [10,20].
        seconds: Length of the trainings; by default the longest.
        images: Images of a distance.
    """
    check_numbers(steps=steps)
    if not samplers:
        raise ValueError("samplers is empty; name at least one")
    finished = finished_trainings(field, folder)
    lengths = sorted({training.seconds for training in finished})
    if seconds is not None and seconds not in lengths:
        there = ", ".join(f"{length:g}" for length in lengths)
        raise ValueError(f"seconds is {seconds:g}; the trainings that are here are of {there}")
    chosen = [training for training in finished if training.seconds == (seconds or max(lengths))]
    compared = sampler_comparison(chosen, samplers, steps, images)
    rows = with_bar(compared, len(chosen) * len(samplers) * len(steps))
    return rows, sampler_table(rows, field.baseline)


def profile(field: Field, name: str = "UNet", batch_sizes: list[int] = [64, 512]) -> Figures:  # noqa: B006
    """Profile of a training step and of forward passes.

    Args:
        name: Name of the entry.
        batch_sizes: Images in a forward pass.
    """
    check_numbers(batch_sizes=batch_sizes)
    if name not in field.entries:
        raise ValueError(f"name is '{name}'; the entries are {', '.join(field.entries)}")
    rows = profiles(field.entries[name], batch_sizes)
    return rows, profile_table(rows)


def data(data_root: str, rounds: int = 3) -> Figures:
    """Speed of the input path.

    Args:
        rounds: Rounds that count.
    """
    check_positive(rounds=rounds)
    rows = feeding_speeds(data_root, FEEDING_BATCH_SIZE, FEEDING_BATCHES, rounds)
    return rows, speed_table(rows, TORCHVISION)


def scale(data_root: str, tables: str | None = None, seconds: float = 10, rounds: int = 3) -> Figures:
    """Training speed and memory by image size, width, batch and processes.

    Args:
        tables: YAML file of tables; by default scale.yaml.
        seconds: Length of a measurement.
        rounds: Measurements of each row, in turns.
    """
    check_positive(rounds=rounds)
    if seconds <= 0:
        raise ValueError(f"seconds is {seconds}; give a number above 0")
    rows = scale_rows(read_cells(Path(tables or SCALE), data_root), seconds, rounds)
    return rows, scale_tables(rows)


def speedrun(folder: Path, data_root: str, config: str = "speedrun", seeds: int = 1) -> Figures:
    """Whether a training of some seconds reaches a Fréchet distance of 0.25; exit status 1 if not.

    Args:
        config: YAML file of the training, or its name; training.max_minutes is the length of a run.
        seeds: Runs, with seeds from 0.
    """
    check_positive(seeds=seeds)
    runner = read_runner(config, data_root)
    with training_bar(seeds * sum(runner.seconds)) as on_turn:
        rows = run_seeds(runner, seeds, folder, on_turn)
    return rows, speedrun_page(rows)


MODES = (train, sample, stock, samplers, profile, data, scale, speedrun)
WITHOUT_ENTRIES = (data, scale, speedrun)
GIVEN = ("field", "folder", "data_root", "compile")


def build_parser() -> Parser:
    """Return the parser of this command."""
    return subcommands(__doc__, MODES, GIVEN, common_options)


@command
def main() -> None:
    """Measure, write the tables, and print them."""
    mode, options = build_parser().parse_mode(MODES, sys.argv[1:])
    folder = Path(options.output_dir)
    name = mode.__name__
    check_writable(folder / f"{name}.json")
    if mode is not scale:  # which has processes of its own
        start_process()
    field = None if mode in WITHOUT_ENTRIES else field_of(options)
    rows, page = call_mode(mode, options, field=field, folder=folder)
    figures = {"processor": processor(), "rows": rows}
    for suffix, text in (("json", json.dumps(figures, indent=2) + "\n"), ("md", page)):
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{page}\n{processor()}\nwritten to {folder / name}.md and .json")
    if not all(row.get("reached", True) for row in rows):
        sys.exit(1)
