"""A report as a Markdown page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.comparison import mean_and_spread
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET
from pipelines.evaluation.inception import DIGEST
from pipelines.evaluation.report import Report

LABELS = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "kernel_error": "standard error of the kernel distance",
    "sliced_wasserstein": "sliced Wasserstein distance, squared",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
SPACES = {
    "judge": "the judge's features",
    "convolutions": "the features of fixed convolutions",
    "pixels": "the principal components of the pixels",
}
INCEPTION = {
    "torch-fidelity": "torch-fidelity and torchmetrics (`antialias=False`): TensorFlow 1's resizing",
    "clean-fid": "clean-fid: Pillow's bicubic resizing",
}

FEW = f" Classes of fewer than {FEWEST_FOR_FRECHET} images have none."


def render(report: Report, speeds: Mapping[tuple[str, int], float]) -> str:
    """Return a report as Markdown, with `speeds` in images/s by sampler and steps."""
    writers = {
        "distances": distances,
        "classes": _classes,
        "guidance": _guidance,
        "likelihood": _likelihood,
        "memorisation": _memorisation,
        "inception": _inception,
    }
    parts = ["# Evaluation\n", _header(report)]
    parts += [write(report) for name, write in writers.items() if name in report]
    if "samplers" in report:
        parts.append(_samplers(report, speeds))
    return "\n".join(parts)


def distances(report: Report) -> str:
    """Return the section on distances."""
    parts = ["## Distances\n"]
    for space, splits in report["distances"].items():
        for split, columns in splits.items():
            rows = [
                [LABELS[figure], *(_with_spread(columns[column][figure]) for column in ("samples", "floor", "ceiling"))]
                for figure in columns["samples"]
            ]
            parts.append(f"Against the {split} split, in {SPACES[space]}:\n")
            parts.append(markdown_table(["", "samples", "floor", "ceiling"], rows))
    kernel = "the standard error of a kernel distance is over blocks of 1,000 images, within a set. "
    has_kernel = any("kernel" in columns["samples"] for columns in splits.values())
    parts.append(
        f"± is the standard deviation over the sets{'; ' + kernel if has_kernel else '. '}"
        "Floor: the same number of real images of the other split; without ± it is of the whole test split, the "
        "held-out images. Ceiling: Gaussian noise with the mean and the variance of each pixel, clipped to the grey "
        "levels.\n"
    )
    return "\n".join(parts)


def render_validation(figures: dict[str, Any]) -> str:
    """Return the table of an evaluation during training."""
    count = int(figures["evaluation_images"])
    losses = {
        "held_out_loss": "held-out loss",
        **{f"held_out_loss_quarter_{quarter}": f"quarter {quarter} of the timesteps" for quarter in range(1, 5)},
    }
    rows = [[name, number(figures[key]), ""] for key, name in losses.items() if key in figures]
    if "frechet" in figures:
        distance, floor = number(figures["frechet"]), number(figures["frechet_floor"])
        space = SPACES[figures["frechet_space"]]
        rows.insert(0, [f"Fréchet distance of {count:,} images to training images, in {space}", distance, floor])
    return markdown_table(["at the end of training", "samples", "floor: held-out images"], rows)


def _header(report: Report) -> str:
    facts = dict(report.get("subject", {}))
    if "images" in report:
        facts |= {"images": f"{report['images']:,}", "sets of them (seeds)": report["sets"]}
    if "judge" in report:
        accuracy, digest = report["judge"]["test_accuracy"], report["judge"]["sha256"][:12]
        facts["judge, a classifier"] = f"{accuracy:.1%} of the held-out images right, {digest}"
    table = markdown_table(["", ""], [[name, value] for name, value in facts.items()])
    return table + "".join(f"\n{note}.\n" for note in report.get("notes", ()))


def _classes(report: Report) -> str:
    section = report["classes"]
    rows = [
        [
            name,
            *(_with_spread(row[figure]) if figure in row else "" for figure in ("frechet", "floor", "agreement")),
            "" if section["agreement_floor"][index] is None else number(section["agreement_floor"][index]),
        ]
        for index, (name, row) in enumerate(section["by_class"].items())
    ]
    columns = ["class", "Fréchet distance", "floor", "judge agrees", "floor"]
    few = "" if all("frechet" in row for row in section["by_class"].values()) else FEW
    return (
        "## By class\n\nDistance to the class's training images in the judge's features; the floors are the class's "
        f"held-out images.{few}\n\n{markdown_table(columns, rows)}\nOver all classes the judge agrees with "
        f"{_with_spread(section['agreement'])} of the images.\n\n![confusion](report/confusion.png)\n"
    )


def _guidance(report: Report) -> str:
    figures = {"agreement": "judge agrees", "recall": "recall", "frechet": "Fréchet distance"}
    shown = [name for name in figures if name in report["guidance"][-1]]
    rows = [
        ["real held-out images" if row.get("floor") else row["scale"], *(number(row[figure]) for figure in shown)]
        for row in report["guidance"]
    ]
    table = markdown_table(["guidance scale", *(figures[name] for name in shown)], rows)
    count = report["guidance"][-1]["images"]
    return f"## Guidance\n\n{count:,} images a row, train split.\n\n{table}\n![guidance](report/guidance.png)\n"


def _likelihood(report: Report) -> str:
    section = report["likelihood"]
    parts = [[name, number(section[name])] for name in ("prior", "denoising", "decoder")]
    rows = [[f"{row['from']} to {row['to']}", number(row["bits"])] for row in section["by_timestep"] if row["bits"] > 0]
    bound, variance = f"{section['bits_per_dimension']:.3f} ± {section['standard_error']:.3f}", section["variance_type"]
    given = "given their labels, " if section["given_labels"] else ""
    return (
        f"## Likelihood\n\nThe variational bound of {section['images']:,} held-out images (Ho et al. 2020, eq. 5 and "
        f"13), {given}the reverse steps' variance `{variance}`: **{bound} bits per dimension** (standard error over "
        f"images).\n\n{markdown_table(['part', 'bits per dimension'], parts)}\n"
        f"{markdown_table(['timesteps', 'bits per dimension'], rows)}\n![likelihood](report/likelihood.png)\n"
    )


def _memorisation(report: Report) -> str:
    parts = [
        "## Memorisation\n\nThe two nearest training images; the ratio is the first distance over the second, near 0 "
        "for a copy.\n"
    ]
    for space, section in report["memorisation"].items():
        columns = [section[column] for column in ("samples", "floor") if column in section]
        rows = [[name.replace("_", " "), *(number(column[name]) for column in columns)] for name in columns[0]]
        titles = ["", "samples", "real held-out images"][: 1 + len(columns)]
        parts.append(
            f"In {SPACES[space]}:\n\n{markdown_table(titles, rows)}\n"
            f"The closest pairs, sample left and training image right, are in `report/memorisation_{space}.png`.\n\n"
            f"![pairs](report/memorisation_{space}.png)\n"
        )
    return "\n".join(parts)


def _inception(report: Report) -> str:
    section = report["inception"]
    rows = [
        [INCEPTION[name], _with_spread(mean_and_spread(row["samples"])), number(row["floor"])]
        for name, row in section["distances"].items()
    ]
    known = "" if section["weights"].startswith(DIGEST) else f", not {DIGEST} as that of the papers' weights"
    columns = ["as", f"{section['images']:,} samples", f"floor: {section['floor_images']:,} held-out images"]
    return (
        f"## Fréchet Inception distance\n\nTo all {section['training_images']:,} training images; the SHA-256 of the "
        f"weights begins with {section['weights'][:8]}{known}. The bias falls with the number of images: compare "
        f"figures of equal numbers.\n\n{markdown_table(columns, rows)}"
    )


def _samplers(report: Report, speeds: Mapping[tuple[str, int], float]) -> str:
    rows = []
    for row in report["samplers"]:
        figures = [number(row["frechet"]), number(row["recall"])]
        if row.get("floor"):
            rows.append(["real held-out images", "", "", *figures, ""])
        else:
            speed = speeds[row["sampler"], row["steps"]]
            rows.append([row["sampler"], row["steps"], row["calls"], *figures, number(speed)])
    columns = ["sampler", "steps", "network calls", "Fréchet distance", "recall", "images/s"]
    count = report["samplers"][-1]["images"]
    table = markdown_table(columns, rows)
    return f"## Samplers\n\n{count:,} images a row, train split.\n\n{table}\n![samplers](report/samplers.png)\n"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _with_spread(figure: dict[str, float | None]) -> str:
    mean, spread = figure["mean"], figure["spread"]
    assert mean is not None
    return number(mean) if spread is None else f"{number(mean)} ± {number(spread)}"


def number(value: float) -> str:
    """Return four significant digits, never with an exponent."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")
