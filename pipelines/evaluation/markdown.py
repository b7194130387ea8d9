"""A report as a Markdown page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.comparison import mean_and_spread
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET
from pipelines.evaluation.inception import DIGEST
from pipelines.evaluation.judge_networks import JUDGES
from pipelines.evaluation.report import Report
from pipelines.evaluation.spaces import PREFIXES

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
    "judge": "the first judge's features",
    "second_judge": "the second judge's features",
    "convolutions": "the features of fixed convolutions",
    "pixels": "the principal components of the pixels",
}
TITLES = dict(zip(PREFIXES, ("", ", second judge"), strict=True))  # of columns, by prefix of their figures
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
        "usefulness": _usefulness,
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
        "Floor: the same number of real images of the other split, with the class counts of samples that have labels; "
        "without ± it is of the whole test split, the held-out images. Ceiling: Gaussian noise with the mean and the "
        "variance of each pixel, clipped to the grey levels.\n"
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
    own = [prefix for prefix in PREFIXES if f"{prefix}frechet" in figures]
    what = f"Fréchet distance of {count:,} images to training images, in "
    distances = [
        [
            what + SPACES[figures[f"{prefix}frechet_space"]],
            *(number(figures[prefix + name]) for name in ("frechet", "frechet_floor")),
        ]
        for prefix in own
    ]
    return markdown_table(["at the end of training", "samples", "floor: held-out images"], [*distances, *rows])


def _header(report: Report) -> str:
    facts = dict(report.get("subject", {}))
    if "images" in report:
        facts |= {"images": f"{report['images']:,}", "sets of them (seeds)": report["sets"]}
    for kind in (kind for kind in JUDGES if kind in report):
        accuracy, digest = report[kind]["test_accuracy"], report[kind]["sha256"][:12]
        name = f"{kind.replace('_', ' ')}, a classifier"
        facts[name] = f"{accuracy:.1%} of the held-out images right, {digest}"
    table = markdown_table(["", ""], [[name, value] for name, value in facts.items()])
    return table + "".join(f"\n{note}.\n" for note in report.get("notes", ()))


def _classes(report: Report) -> str:
    section = report["classes"]
    prefixes = [prefix for prefix in PREFIXES if f"{prefix}by_class" in section]
    columns, lines = ["class"], {name: [name] for name in section["by_class"]}
    for prefix in prefixes:
        columns += [f"Fréchet distance{TITLES[prefix]}", "floor", f"judge agrees{TITLES[prefix]}", "floor"]
        floors = section[f"{prefix}agreement_floor"]
        for (name, row), floor in zip(section[f"{prefix}by_class"].items(), floors, strict=True):
            cells = (_with_spread(row[figure]) if figure in row else "" for figure in ("frechet", "floor", "agreement"))
            lines[name] += [*cells, "" if floor is None else number(floor)]
    few = "" if all("frechet" in row for row in section["by_class"].values()) else FEW
    agreement = " and the second with ".join(_with_spread(section[f"{prefix}agreement"]) for prefix in prefixes)
    return (
        "## By class\n\nDistance to the class's training images in the features of each judge; the floors are the "
        f"class's held-out images.{few}\n\n{markdown_table(columns, lines.values())}\nOver all classes the first judge "
        f"agrees with {agreement} of the images.\n\n![confusion](report/confusion.png)\n"
    )


def _usefulness(report: Report) -> str:
    section = report["usefulness"]
    rows = [
        [f"{section['images']:,} samples", number(section["samples"])],
        [f"{section['images']:,} real training images", number(section["real"])],
    ]
    table = markdown_table(
        ["a classifier trained only on", f"accuracy on {section['held_out']:,} held-out images"], rows
    )
    return f"## Usefulness\n\nThe classification accuracy score (Ravuri and Vinyals 2019).\n\n{table}"


def _guidance(report: Report) -> str:
    figures = {"agreement": "judge agrees", "recall": "recall", "frechet": "Fréchet distance"}
    titles = _titles(figures, report["guidance"][-1])
    rows = [
        ["real held-out images" if row.get("floor") else row["scale"], *(number(row[figure]) for figure in titles)]
        for row in report["guidance"]
    ]
    table = markdown_table(["guidance scale", *titles.values()], rows)
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
    titles = _titles({"frechet": "Fréchet distance", "recall": "recall"}, report["samplers"][-1])
    for row in report["samplers"]:
        figures = [number(row[name]) for name in titles]
        if row.get("floor"):
            rows.append(["real held-out images", "", "", *figures, ""])
        else:
            speed = speeds[row["sampler"], row["steps"]]
            rows.append([row["sampler"], row["steps"], row["calls"], *figures, number(speed)])
    columns = ["sampler", "steps", "network calls", *titles.values(), "images/s"]
    count = report["samplers"][-1]["images"]
    table = markdown_table(columns, rows)
    return f"## Samplers\n\n{count:,} images a row, train split.\n\n{table}\n![samplers](report/samplers.png)\n"


def _titles(figures: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of the figures that a row has, by name, those of the second judge after the first's."""
    return {
        prefix + name: title + TITLES[prefix]
        for prefix in PREFIXES
        for name, title in figures.items()
        if prefix + name in row
    }


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
