"""Tables of the benchmarks."""

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.machine import FORWARDS_IN_A_STEP
from benchmarks.race import Training
from benchmarks.scale import power
from pipelines.evaluation.markdown import markdown_table, number

DISTANCES = {"frechet": "Fréchet distance", "second_frechet": "by the second judge"}
JUDGED = ("held_out_loss", *DISTANCES, *(f"{name}_floor" for name in DISTANCES), "evaluation_images")
CONDITIONS = {"batch_size": "batch", "steps": "steps"}  # conditions of a speed, by name in the tables


def train_rows(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Return the figures of finished trainings."""
    rows = []
    for training in trainings:
        result, facts = training.result, training.facts
        assert result is not None
        speed = result["images"] / result["seconds"]
        rows.append(
            {
                "name": training.entry.name,
                "arguments": " ".join(training.entry.arguments),
                "seed": training.seed,
                "parameters": facts["parameters"],
                "operations_per_image": facts["operations"],
                "precision": result["precision"],
                "seconds": training.seconds,
                "steps": result["steps"],
                "images_per_second": speed,
                "bf16_matmul_peak": result["peak"],
                "share_of_peak": FORWARDS_IN_A_STEP * facts["operations"] * speed / result["peak"],
                **{name: result[name] for name in JUDGED},
                "race": result["race"],
                "date": result["date"],
            }
        )
    return rows


def train_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a table of trainings by length; ratios are to the baseline in the same race."""
    seeds = len({row["seed"] for row in rows}) > 1
    baselines = {(row["race"], row["seed"]): row for row in rows if row["name"] == baseline}
    lines = []
    for row in sorted(rows, key=lambda row: row["seconds"]):
        other = baselines.get((row["race"], row["seed"]))
        distances = []
        for name in DISTANCES:
            distances += [number(row[name]), number(row[name] / other[name]) if other else ""]
        speed_ratio = number(row["images_per_second"] / other["images_per_second"]) if other else ""
        lines.append(
            [
                row["name"] + (f", seed {row['seed']}" if seeds else ""),
                f"{row['parameters']:,}",
                number(row["operations_per_image"] / 1e6),
                _precision(row),
                f"{row['seconds']:g}",
                f"{row['steps']:,}",
                f"{row['images_per_second']:.0f}",
                speed_ratio,
                f"{row['share_of_peak']:.0%}",
                number(row["held_out_loss"]),
                *distances,
            ]
        )
    columns = [
        *("network", "parameters", "MFLOP an image", "precision", "seconds", "steps", "images/s", "ratio"),
        *("share of peak", "held-out loss", *(part for title in DISTANCES.values() for part in (title, "ratio"))),
    ]
    images = rows[0]["evaluation_images"]
    return (
        f"{markdown_table(columns, lines)}\nFréchet distance of {images:,} images to the train split by each "
        f"judge; the floors, as many test images, are {_floors(rows[0])}. Ratios are to {baseline} in the same "
        "race.\n"
    )


def reach_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a table of each network's time to the distances of the baseline's longest training, by judge."""
    by_judge = [curves_of(rows, name) for name in DISTANCES]
    goals = [max(curves[baseline].items()) for curves in by_judge]
    lines = []
    for name in by_judge[0]:
        cells = [_reached(curves[name], *goal) for curves, goal in zip(by_judge, goals, strict=True)]
        lines.append([name, *(part for cell in cells for part in cell)])
    columns = ["network", "seconds", "ratio", "by the second judge", "ratio"]
    distances, (longest, _) = " and ".join(number(distance) for _, distance in goals), goals[0]
    return (
        f"Seconds to a Fréchet distance of {distances} by the two judges, {baseline}'s after {longest:g} s (between "
        f"two lengths by a power law):\n\n{markdown_table(columns, lines)}"
    )


def _reached(curve: Mapping[float, float], longest: float, distance: float) -> tuple[str, str]:
    """Return the seconds of training to a distance, and their ratio to those of the baseline's longest training."""
    seconds = seconds_to(distance, curve)
    if seconds is None:
        return f"not reached in {max(curve):g}", ""
    at_most = "at most " if seconds == min(curve) < longest else ""
    return f"{at_most}{seconds:.0f}", f"{at_most}{number(seconds / longest)}"


def _floors(row: Mapping[str, Any]) -> str:
    return " and ".join(number(row[f"{name}_floor"]) for name in DISTANCES)


def curves_of(rows: Sequence[Mapping[str, Any]], figure: str = "frechet") -> dict[str, dict[float, float]]:
    """Return a distance by seconds of training, by name; the geometric mean over seeds."""
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        curves.setdefault(row["name"], {}).setdefault(row["seconds"], []).append(row[figure])
    return {
        name: {seconds: geometric_mean(distances) for seconds, distances in sorted(curve.items())}
        for name, curve in curves.items()
    }


def seconds_to(distance: float, curve: Mapping[float, float]) -> float | None:
    """Return the seconds of training to a distance, by a power law between neighbouring trainings.

    None if no training reaches it; the length of the shortest training if it does.
    """
    before: tuple[float, float] | None = None
    for seconds, reached in sorted(curve.items()):
        if reached <= distance:
            if before is None:
                return seconds
            share = math.log(before[1] / distance) / math.log(before[1] / reached)
            return before[0] * (seconds / before[0]) ** share
        before = seconds, reached
    return None


def speed_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a table of speeds; ratios are to the baseline under the same conditions."""
    others = {_conditions(row): row["images_per_second"] for row in rows if row["name"] == baseline}
    lines = []
    for row in rows:
        speeds = (row[name] for name in ("images_per_second", "slowest_round", "fastest_round"))
        ratio = number(row["images_per_second"] / others[_conditions(row)])
        share = [f"{row['share_of_peak']:.0%}"] if "share_of_peak" in row else []
        first = f"{row['first_round_seconds']:.1f}"
        lines.append([row["name"], *_conditions(row), *(number(speed) for speed in speeds), ratio, first, *share])
    columns = [
        "",
        *CONDITIONS.values(),
        "images/s (median)",
        "slowest",
        "fastest",
        "ratio",
        "seconds of the first round",
    ]
    share_column = ["share of peak"] if "share_of_peak" in rows[0] else []
    return markdown_table([*columns, *share_column], lines)


def _conditions(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key, "") for key in CONDITIONS)


def stock_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of speeds at equal distance; the first row is the distance to reach."""
    target = rows[0]
    lines = [
        [
            row["name"] + (" in the stock DDPMPipeline" if row is target else ""),
            f"{row['trained_seconds']:g}",
            row["steps"],
            *(number(row[name]) for name in DISTANCES),
            number(row["images_per_second"]),
            number(row["images_per_second"] / target["images_per_second"]),
        ]
        for row in rows
    ]
    columns = ["network", "seconds of training", "steps", *DISTANCES.values(), "images/s", "ratio"]
    images = f"{target['images']:,} images a row; the floors, as many test images, are {_floors(target)}."
    return f"{markdown_table(columns, lines)}\n{images}\n"


def sampler_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a table of distances by network and sampler, for each judge; ratios are of the best to the baseline's."""
    tables = (_by_sampler(rows, baseline, figure) for figure in DISTANCES)
    seconds, images = rows[0]["trained_seconds"], rows[0]["images"]
    return "\nBy the second judge:\n\n".join(tables) + (
        f"\nFréchet distance of {images:,} images, after {seconds:g} s of training. The floors, "
        f"as many test images, are {_floors(rows[0])}.\n"
    )


def _by_sampler(rows: Sequence[Mapping[str, Any]], baseline: str, figure: str) -> str:
    ways = list(dict.fromkeys(_way(row) for row in rows))
    distances: dict[str, dict[str, float]] = {}
    for row in rows:
        distances.setdefault(row["name"], {})[_way(row)] = row[figure]
    other = min(distances[baseline].values()) if baseline in distances else None
    lines = []
    for name, own in distances.items():
        best = min(own, key=own.__getitem__)
        cells = [f"**{number(own[way])}**" if way == best else number(own[way]) for way in ways]
        lines.append([name, *cells, number(own[best] / other) if other else ""])
    return markdown_table(["network", *ways, "ratio of the best"], lines)


def profile_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return tables of each pass by kind of operation, and of its convolutions."""
    passes = [_pass(row) for row in rows]
    lines = [[kind, *(_milliseconds(row["kinds"][kind], row) for row in rows)] for kind in rows[0]["kinds"]]
    lines.append(["with the profiler", *(_milliseconds(row["profiled_seconds"], row) for row in rows)])
    lines.append(["without", *(f"{row['seconds'] * 1e3:.2f} ms" for row in rows)])
    lines.append(["share of peak", *(f"{row['share_of_peak']:.0%}" for row in rows)])
    network = f"{rows[0]['name']}, {_precision(rows[0])}, without the sampler"
    parts = [f"{network}:\n\n{markdown_table(['', *passes], lines)}"]
    for row, name in zip(rows, passes, strict=True):
        convolutions = []
        for convolution in row["convolutions"]:
            calls, seconds = convolution["calls"], convolution["seconds"] / convolution["calls"]
            speed = convolution["operations"] / seconds
            share = f"{speed / row['bf16_matmul_peak']:.0%}"
            words = convolution["convolution"], convolution["direction"]
            convolutions.append([*words, str(calls), f"{seconds * 1e6:.0f}", f"{speed / 1e9:.0f}", share])
        columns = ["convolution", "", "calls", "µs a call", "GFLOP/s", "share of peak"]
        parts.append(f"Convolutions in a {name}:\n\n{markdown_table(columns, convolutions)}")
    return "\n".join(parts)


def _milliseconds(seconds: float, row: Mapping[str, Any]) -> str:
    return f"{seconds * 1e3:.2f} ms, {seconds / row['profiled_seconds']:.0%}"


def _precision(row: Mapping[str, Any]) -> str:
    return "fp32" if row["precision"] == "no" else str(row["precision"])


def _pass(row: Mapping[str, Any]) -> str:
    return f"{row['pass']}, batch {row['batch_size']}"


def _way(row: Mapping[str, Any]) -> str:
    return f"{row['sampler']}, {row['steps']} steps"


def scale_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each table of the cells; with the fitted powers where the pixels differ."""
    parts = []
    for table in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == table]
        cells = [
            [
                row["name"],
                f"{row['parameters'] / 1e6:.2f} M",
                number(row["operations_per_image"] / 1e6),
                number(row["images_per_second"]),
                number(row["images_per_second"] * FORWARDS_IN_A_STEP * row["operations_per_image"] / 1e9),
                f"{row['peak_gibibytes']:.2f}",
            ]
            for row in own
        ]
        columns = [table, "parameters", "MFLOP an image", "images/s", "GFLOP/s", "peak memory, GiB"]
        parts.append(markdown_table(columns, cells))
        if len({row["pixels"] for row in own}) > 1:
            speed, work = (power(own, "pixels", name) for name in ("images_per_second", "operations_per_image"))
            parts.append(f"images/s ~ pixels^{speed:.2f}; FLOP an image ~ pixels^{work:.2f}\n")
    return "\n".join(parts)
