"""The report's files."""

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from denoiser.files import atomic_path, check_writable
from pipelines.evaluation.drawing import sampler_key
from pipelines.evaluation.report import Report

JSON, PAGE, TIMINGS, PICTURES = "report.json", "report.md", "timings.json", "report"


def check_report_folder(folder: Path) -> None:
    """Raise `OSError` if a report cannot be written to `folder`, or would replace what is not one."""
    check_writable(folder / JSON)
    if (folder / PICTURES).exists() and not (folder / JSON).is_file():
        raise FileExistsError(f"{folder / PICTURES} is not a report's folder of pictures; give another --output_dir")


def write_report(
    folder: Path,
    report: Report,
    page: str,
    pictures: Mapping[str, Image.Image],
    seconds: Mapping[str, float],
    speeds: Mapping[tuple[str, int], float],
) -> None:
    """Write a report, each file whole or not at all.

    What the clock says stands apart, so that the same seed gives the same `report.json`.

    Args:
        folder: Where to.
        report: Figures.
        page: The report as Markdown.
        pictures: Plots, by name.
        seconds: Time that drawing and judging took.
        speeds: Images/s by sampler and steps.
    """
    by_sampler = {sampler_key(*sampler): speed for sampler, speed in speeds.items()}
    timings = {"seconds": dict(seconds), "images_per_second": by_sampler}
    texts = {
        name: json.dumps(value, indent=2, allow_nan=False) + "\n"
        for name, value in ((JSON, report), (TIMINGS, timings))
    }
    with atomic_path(folder / PICTURES) as temporary:
        temporary.mkdir()
        for name, picture in pictures.items():
            picture.save(temporary / f"{name}.png")
    for name, text in {**texts, PAGE: page}.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
