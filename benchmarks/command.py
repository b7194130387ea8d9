"""Measure this project beside other U-Nets, in turns on the same machine: python scripts/benchmark.py train."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import patch_environment
from PIL import Image
from tqdm import tqdm

from benchmarks.drawing import longest_of, sampler_comparison, stock_comparison
from benchmarks.entries import Field, read_field
from benchmarks.machine import processor
from benchmarks.profile import profiles
from benchmarks.race import Training, race
from benchmarks.speed import TORCHVISION, feeding_speeds, sampling_speeds
from benchmarks.tables import (
    profile_plot,
    profile_table,
    reach_table,
    sampler_plot,
    sampler_table,
    speed_plot,
    speed_table,
    stock_plot,
    stock_table,
    train_plot,
    train_rows,
    train_table,
)
from denoiser.checks import check_positive
from denoiser.files import atomic_path, check_writable
from denoiser.processes import start_process
from pipelines.commands.parser import Parser, command

SAMPLERS = ["sde-dpmsolver++", "dpmsolver++", "unipc", "ddim"]
NETWORKS, QUICK = "benchmarks/configs/networks.yaml", "benchmarks/configs/quick.yaml"
WHAT = {
    "train": "quality after some seconds of training",
    "sample": "speed of drawing",
    "stock": "after train: speed of drawing at the quality of the baseline in the stock DDPMPipeline",
    "samplers": "after train: quality with each sampler",
    "profile": "where the time of a training step and of a forward pass goes",
    "data": "speed of the input path",
}
BAR = "training {percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left, and the judging"
FEEDING_BATCH_SIZE, FEEDING_BATCHES = 128, 50
Figures = tuple[list[dict[str, Any]], str, Image.Image]


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    commands = parser.add_subcommands(dest="what")
    for what, help_ in WHAT.items():
        commands.add_subcommand(what, what_parser(what), help=help_)
    return parser


def what_parser(what: str) -> Parser:
    """Return the parser of one measurement's options."""
    parser = Parser(description=WHAT[what])
    parser.add_argument("--output_dir", type=str, default="runs/benchmark", help="folder of tables and trainings")
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    if what != "data":
        parser.add_argument("--entries", type=str | None, help=f"file of what is compared (default: {NETWORKS})")
        parser.add_argument("--quick", action="store_true", help=f"{QUICK}: two networks, trained for four minutes")
    match what:
        case "train":
            parser.add_argument("--seeds", type=int, default=1, help="trainings of each entry and length")
        case "sample":
            parser.add_argument("--rounds", type=int, default=3, help="turns that count")
            parser.add_argument("--steps", type=list[int], default=[20], help="steps of the sampler: [1,4,20]")
            parser.add_argument("--batch_sizes", type=list[int], default=[64, 512], help="images drawn at once")
            parser.add_argument("--compile", action="store_true", help="measure each network compiled, too")
        case "stock":
            parser.add_argument("--images", type=int, default=512, help="images that a distance is of")
        case "samplers":
            parser.add_argument("--samplers", type=list[str], default=SAMPLERS, help="names of samplers")
            parser.add_argument("--steps", type=list[int], default=[20], help="steps of each: [10,20]")
            parser.add_argument("--seconds", type=float | None, help="of the trainings to draw from; default: the most")
            parser.add_argument("--images", type=int, default=2048, help="images that a distance is of")
        case "profile":
            parser.add_argument("--name", type=str, default="UNet", help="which of the entries")
            parser.add_argument("--batch_sizes", type=list[int], default=[64, 512], help="images in a forward pass")
        case "data":
            parser.add_argument("--rounds", type=int, default=3, help="turns that count")
    return parser


def field_of(options: Any) -> Field:
    """Read what is compared."""
    if options.quick and options.entries:
        raise ValueError(f"quick is {QUICK}, and entries is {options.entries}; give one of them")
    return read_field(Path(options.entries or (QUICK if options.quick else NETWORKS)), options.data_root)


def check_numbers(**options: list[int]) -> None:
    """Raise `ValueError` if a list is empty, or one of its numbers is not positive."""
    for name, numbers in options.items():
        if not numbers:
            raise ValueError(f"{name} is empty; give at least one number")
        for number in numbers:
            check_positive(**{name: number})


def all_trainings(field: Field, seeds: int, folder: Path) -> list[Training]:
    """Return every training that a file asks for."""
    return [
        Training.of(entry, seconds, seed, folder / "trainings")
        for entry in field.entries.values()
        for seconds in entry.seconds
        for seed in range(seeds)
    ]


def finished_trainings(field: Field, folder: Path) -> list[Training]:
    """Return the trainings of the first seed that were made; `ValueError` if there are none."""
    finished = [training for training in all_trainings(field, 1, folder) if training.result is not None]
    if not finished:
        raise ValueError(f"no training is in {folder}; make them first, with the same options and train")
    return finished


def with_bar(rows: Iterable[dict[str, Any]], count: int | None = None) -> list[dict[str, Any]]:
    """Collect rows as they are drawn, with a bar of them; without one if there is an error before the first."""
    return [*tqdm(rows, desc="drawing", total=count, unit="row", delay=0.1)]


def train(options: Any, folder: Path) -> Figures:
    """Train what was not trained yet, and judge it."""
    check_positive(seeds=options.seeds)
    field = field_of(options)
    trainings = all_trainings(field, options.seeds, folder)
    todo = {training.folder: training.seconds for training in trainings if training.result is None}
    length = sum(todo.values())
    with tqdm(total=length, bar_format=BAR, mininterval=15, disable=not todo) as bar:
        race(trainings, lambda seconds: bar.update(min(seconds, length - bar.n)))
    rows = train_rows(trainings)
    return rows, f"{train_table(rows, field.baseline)}\n{reach_table(rows, field.baseline)}", train_plot(rows)


def sample(options: Any, folder: Path) -> Figures:
    """Measure how fast the entries' networks draw."""
    check_positive(rounds=options.rounds)
    check_numbers(steps=options.steps, batch_sizes=options.batch_sizes)
    field = field_of(options)
    entries = list(field.entries.values())
    # What was compiled for an earlier measurement would cost nothing in this one.
    with TemporaryDirectory() as empty, patch_environment(torchinductor_cache_dir=empty):
        rows = sampling_speeds(entries, options.batch_sizes, options.steps, options.rounds, options.compile)
    return rows, speed_table(rows, field.baseline), speed_plot(rows)


def stock(options: Any, folder: Path) -> Figures:
    """Compare the finished trainings with the baseline's longest in the stock pipeline."""
    field = field_of(options)
    finished = finished_trainings(field, folder)
    baseline = longest_of(field.baseline, finished)
    others = [training for training in finished if training.entry.name != field.baseline]
    if not others:
        raise ValueError(f"all trainings in {folder} are of '{field.baseline}'; make others to compare, with train")
    rows = with_bar(stock_comparison(baseline, others, options.images))
    return rows, stock_table(rows), stock_plot(rows)


def samplers(options: Any, folder: Path) -> Figures:
    """Compare samplers on the finished trainings of one length."""
    check_numbers(steps=options.steps)
    if not options.samplers:
        raise ValueError("samplers is empty; name at least one")
    field = field_of(options)
    finished = finished_trainings(field, folder)
    lengths = sorted({training.seconds for training in finished})
    seconds = max(lengths) if options.seconds is None else options.seconds
    if seconds not in lengths:
        there = ", ".join(f"{length:g}" for length in lengths)
        raise ValueError(f"seconds is {seconds:g}; the trainings that are here are of {there}")
    chosen = [training for training in finished if training.seconds == seconds]
    drawn = sampler_comparison(chosen, options.samplers, options.steps, options.images)
    rows = with_bar(drawn, len(chosen) * len(options.samplers) * len(options.steps))
    return rows, sampler_table(rows, field.baseline), sampler_plot(rows)


def profile(options: Any, folder: Path) -> Figures:
    """Measure what one network spends its time on."""
    check_numbers(batch_sizes=options.batch_sizes)
    field = field_of(options)
    if options.name not in field.entries:
        raise ValueError(f"name is '{options.name}'; the entries are {', '.join(field.entries)}")
    rows = profiles(field.entries[options.name], options.batch_sizes)
    return rows, profile_table(rows), profile_plot(rows)


def data(options: Any, folder: Path) -> Figures:
    """Measure the input path."""
    check_positive(rounds=options.rounds)
    rows = feeding_speeds(options.data_root, FEEDING_BATCH_SIZE, FEEDING_BATCHES, options.rounds)
    return rows, speed_table(rows, TORCHVISION), speed_plot(rows)


MEASURE = {
    "train": train,
    "sample": sample,
    "stock": stock,
    "samplers": samplers,
    "profile": profile,
    "data": data,
}


@command
def main() -> None:
    """Measure, write the tables, and print them."""
    parsed = build_parser().parse_args(sys.argv[1:])
    options = parsed[parsed.what]
    folder = Path(options.output_dir)
    check_writable(folder / f"{parsed.what}.json")
    start_process()
    write(folder, parsed.what, *MEASURE[parsed.what](options, folder))


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], page: str, plot: Image.Image) -> None:
    """Write the figures, the tables and the plot, and print the tables."""
    figures = {"processor": processor(), "rows": rows}
    for suffix, text in (("json", json.dumps(figures, indent=2) + "\n"), ("md", page)):
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_path(folder / f"{name}.png") as temporary:
        plot.save(temporary)
    print(f"{page}\n{processor()}\nwritten to {folder / name}.md, .json and .png")
