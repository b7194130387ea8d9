"""Pipelines in repositories of the Hugging Face Hub: names, download, push."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, create_commit, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from denoiser.processes import one_line
from pipelines.denoising import DenoisingPipeline

# Files of a pipeline. Code and pickled weights are left where they are.
FILES = [
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/*.{kind}" for part in ("unet", "guide") for kind in ("json", "safetensors")),
]


def is_repository(name: str) -> bool:
    """Return whether a name has the form `user/name` of the Hub's repositories."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def download(name: str) -> Path:
    """Download the newest pipeline of a repository. Returns its folder in the Hub's cache.

    Offline, it is the pipeline that was downloaded last. Code and pickled weights are not downloaded.

    Raises:
        FileNotFoundError: If there is no such repository, or the Hub cannot be reached and there is no
            earlier download.
        ValueError: If the repository has no weights in safetensors, or the token cannot be one.
    """
    _check_token()
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {name}, and the Hub has no such repository, or none that you may read"
        ) from error
    except Exception as error:  # also of the library for HTTP, of which huggingface_hub has had three
        reason = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise FileNotFoundError(f"there is no folder {name}, and the Hub cannot be reached ({reason})") from error
    if any((folder / part).is_dir() and not any(folder.glob(f"{part}/*.safetensors")) for part in ("unet", "guide")):
        raise ValueError(f"{name} on the Hub has no weights in safetensors, and others are not loaded")
    return folder


def push(pipeline: DenoisingPipeline, name: str, files: Mapping[str, bytes]) -> str:
    """Push a pipeline, and files beside it, to a repository, which is made if it is new.

    diffusers pushes a model card of its own. The files, such as the pipeline's card, come after it.

    Returns:
        The repository's address.

    Raises:
        ValueError: If the token cannot be one. The Hub and the network raise errors of their own.
    """
    _check_token()
    pushed = pipeline.push_to_hub(name)
    if files:
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        pushed = create_commit(name, added, commit_message="Upload model card")
    return str(pushed.repo_url)


def _check_token() -> None:
    """Raise `ValueError` for a token that HTTP cannot carry: its error would print the token."""
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the Hub's token (HF_TOKEN, or that of hf auth login) has characters that no token has")
