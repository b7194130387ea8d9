"""Tables of the benchmarks."""

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.machine import FORWARDS_IN_A_STEP
from benchmarks.race import Training
from benchmarks.scale import power
from pipelines.evaluation.markdown import markdown_table, number

JUDGED = ("held_out_loss", "frechet", "frechet_floor", "evaluation_images")
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
        ratio = number(row["frechet"] / other["frechet"]) if other else ""
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
                number(row["frechet"]),
                ratio,
            ]
        )
    columns = [
        *("network", "parameters", "MFLOP an image", "precision", "seconds", "steps", "images/s", "ratio"),
        *("share of peak", "held-out loss", "Fréchet distance", "ratio"),
    ]
    images, floor = rows[0]["evaluation_images"], number(rows[0]["frechet_floor"])
    return (
        f"{markdown_table(columns, lines)}\nFréchet distance of {images:,} images to the train split in the judge's "
        f"features; the floor, as many test images, is {floor}. Ratios are to {baseline} in the same race.\n"
    )


def reach_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a table of each network's time to the distance of the baseline's longest training."""
    curves = curves_of(rows)
    longest, distance = max(curves[baseline].items())
    lines = []
    for name, curve in curves.items():
        seconds = seconds_to(distance, curve)
        if seconds is None:
            lines.append([name, f"not reached in {max(curve):g}", ""])
        else:
            at_most = "at most " if seconds == min(curve) < longest else ""
            lines.append([name, f"{at_most}{seconds:.0f}", f"{at_most}{number(seconds / longest)}"])
    table = markdown_table(["network", "seconds", "ratio"], lines)
    return (
        f"Seconds to a Fréchet distance of {number(distance)}, {baseline}'s after {longest:g} s (between two lengths "
        f"by a power law):\n\n{table}"
    )


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """Return the distance by seconds of training, by name; the geometric mean over seeds."""
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        curves.setdefault(row["name"], {}).setdefault(row["seconds"], []).append(row["frechet"])
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
            number(row["frechet"]),
            number(row["images_per_second"]),
            number(row["images_per_second"] / target["images_per_second"]),
        ]
        for row in rows
    ]
    columns = ["network", "seconds of training", "steps", "Fréchet distance", "images/s", "ratio"]
    floor = number(target["frechet_floor"])
    images = f"{target['images']:,} images a row; the floor, as many test images, is {floor}."
    return f"{markdown_table(columns, lines)}\n{images}\n"


def sampler_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a table of distances by network and sampler; ratios are of the best to the baseline's best."""
    ways = list(dict.fromkeys(_way(row) for row in rows))
    distances: dict[str, dict[str, float]] = {}
    for row in rows:
        distances.setdefault(row["name"], {})[_way(row)] = row["frechet"]
    other = min(distances[baseline].values()) if baseline in distances else None
    lines = []
    for name, own in distances.items():
        best = min(own, key=own.__getitem__)
        cells = [f"**{number(own[way])}**" if way == best else number(own[way]) for way in ways]
        lines.append([name, *cells, number(own[best] / other) if other else ""])
    table = markdown_table(["network", *ways, "ratio of the best"], lines)
    seconds, images, floor = rows[0]["trained_seconds"], rows[0]["images"], number(rows[0]["frechet_floor"])
    return (
        f"{table}\nFréchet distance of {images:,} images, after {seconds:g} s of training. The floor, "
        f"as many test images, is {floor}.\n"
    )


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
