"""Loading of pipelines: the ones that ship with the package, checked by hash, saved ones, and the Hub's."""

import os
from pathlib import Path

from safetensors import SafetensorError

from denoiser.checks import did_you_mean
from denoiser.files import sha256
from pipelines.denoising import DenoisingPipeline
from pipelines.hub import download, is_repository
from pipelines.sampling import default_sampler
from pipelines.schedulers import make_scheduler

# Each folder has the files of `DenoisingPipeline.save_pretrained`, a model card, and their SHA256SUMS (`make ship`).
PRETRAINED = ("teacher", "guided", "student")
FOLDER = Path(__file__).parent / "weights"
SUMS = "SHA256SUMS"
LOADED = (".json", ".safetensors")
# Errors of diffusers and safetensors for damaged files, and for files that need what is not installed.
LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, SafetensorError)


def load_pretrained(name: str = "teacher") -> DenoisingPipeline:
    """Load a pipeline for FashionMNIST at 16x16 that ships with the package.

    Args:
        name: "teacher", a denoiser trained for an hour, with its guide, for every sampler; "guided", both
            distilled into one network, for every sampler; or "student", distilled from the teacher for 1, 2
            or 4 steps of the `lcm` sampler.

    Returns:
        The pipeline with its default sampler, progress bar off.

    Raises:
        ValueError: If there is no such pipeline, or a file is not what was shipped.
        FileNotFoundError: If a file is missing.
    """
    if name not in PRETRAINED:
        raise ValueError(f"there is no pretrained '{name}'{did_you_mean(name, PRETRAINED)}: {', '.join(PRETRAINED)}")
    pipeline = find_pipeline(name)
    pipeline.scheduler = make_scheduler(default_sampler(pipeline.scheduler)["scheduler"], pipeline.scheduler.config)
    return pipeline


def find_pipeline(name_or_folder: str | os.PathLike[str]) -> DenoisingPipeline:
    """Load a pretrained pipeline by name, a saved one by folder, or one of the Hub, with its noise schedule.

    Args:
        name_or_folder: "teacher", "guided", "student", a folder, or `user/name`, a repository of the
            Hugging Face Hub, if there is no such folder. Of a repository, configs and safetensors are
            downloaded, never code.

    Raises:
        ValueError: If a file is damaged, or not what was shipped, or weights are not in safetensors.
        FileNotFoundError: If a file is missing, the folder is not a saved pipeline, or there is no such
            repository, or no connection to it.
    """
    if name_or_folder in PRETRAINED:
        check_sums(FOLDER / name_or_folder)
        return load_pipeline(FOLDER / name_or_folder)
    if isinstance(name_or_folder, str) and is_repository(name_or_folder) and not Path(name_or_folder).exists():
        return _load(download(name_or_folder), name_or_folder)
    return load_pipeline(name_or_folder)


def check_sums(folder: Path) -> None:
    """Raise an error unless a folder has exactly the files of its SHA256SUMS, among those loaded."""
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


def load_pipeline(folder: str | os.PathLike[str]) -> DenoisingPipeline:
    """Load a saved pipeline from a folder, progress bar off.

    Raises:
        FileNotFoundError: If the folder is not a saved pipeline.
        ValueError: If a part of it is missing or damaged.
    """
    return _load(Path(folder), str(folder))


def _load(folder: Path, name: str) -> DenoisingPipeline:
    """Load a saved pipeline from a folder, which errors call by its name."""
    if not (folder / DenoisingPipeline.config_name).is_file():
        raise FileNotFoundError(f"{name} is not a saved pipeline: it has no {DenoisingPipeline.config_name}")
    try:
        pipeline = DenoisingPipeline.from_pretrained(folder, use_safetensors=True)
        pipeline.to("cpu")  # which fails if weights are missing
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be loaded as a pipeline: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
