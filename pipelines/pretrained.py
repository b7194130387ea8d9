"""The trained pipelines that ship with the package, each checked by its hashes before it is loaded (`make ship`)."""

import os
from pathlib import Path

from denoiser.checks import did_you_mean
from denoiser.files import sha256
from pipelines.denoising import DenoisingPipeline, load_pipeline
from pipelines.sampling import own_sampler
from pipelines.schedulers import make_scheduler

# Their folders hold what `DenoisingPipeline.save_pretrained` writes, a model card, and SHA256SUMS of these files.
PRETRAINED = ("teacher", "student")
FOLDER = Path(__file__).parent / "weights"
SUMS = "SHA256SUMS"
LOADED = (".json", ".safetensors")


def load_pretrained(name: str = "teacher") -> DenoisingPipeline:
    """Load a pipeline for FashionMNIST at 16x16 that ships with the package, its progress bar off.

    Args:
        name: "teacher", trained for an hour, for every scheduler; or "student", distilled from it
            (`scripts/distill.py`) to draw in 1, 2 or 4 steps of the `lcm` scheduler.

    Returns:
        The pipeline with the sampler that `scripts/sample.py` draws with.

    Raises:
        ValueError: If there is no such pipeline, or a file is not what was shipped.
        FileNotFoundError: If a file is missing.
    """
    if name not in PRETRAINED:
        raise ValueError(f"there is no pretrained '{name}'{did_you_mean(name, PRETRAINED)}: {', '.join(PRETRAINED)}")
    pipeline = find_pipeline(name)
    pipeline.scheduler = make_scheduler(own_sampler(pipeline.scheduler)["scheduler"], pipeline.scheduler.config)
    return pipeline


def find_pipeline(name_or_folder: str | os.PathLike[str]) -> DenoisingPipeline:
    """Load a pretrained pipeline by its name, or a saved one from its folder, with the scheduler of its training.

    Raises:
        ValueError: If a file is damaged, or not what was shipped.
        FileNotFoundError: If a file is missing, or the folder is not a saved pipeline.
    """
    if name_or_folder not in PRETRAINED:
        return load_pipeline(name_or_folder)
    check_sums(FOLDER / name_or_folder)
    return load_pipeline(FOLDER / name_or_folder)


def check_sums(folder: Path) -> None:
    """Raise an error unless a folder has the files that its SHA256SUMS lists, and no others that would be loaded."""
    if not (folder / SUMS).is_file():
        raise FileNotFoundError(f"{folder / SUMS} is missing; install the package again")
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    sums = dict(line.split("  ")[1::-1] for line in lines if "  " in line)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in LOADED}
    if unlisted := sorted(files - sums.keys()):
        raise ValueError(f"{folder / unlisted[0]} is not in {SUMS}; install the package again")
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; install the package again")
        if sha256(path) != digest:
            raise ValueError(
                f"{path} is not the file that was shipped (its SHA-256 differs); install the package again"
            )
