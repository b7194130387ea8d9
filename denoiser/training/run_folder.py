"""The folder that a run leaves: what is where in it, and whose it is to write."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from denoiser.files import atomic_path, check_writable
from denoiser.training.checkpoint import check_trained, find_checkpoint, list_checkpoints


class RunFolder:
    """`config.yaml`, `metrics.jsonl`, `samples/`, `checkpoints/` and, once the run has ended, `pipeline/`.

    Args:
        path: The folder, made when it is claimed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.checkpoints, self.pipeline = path / "checkpoints", path / "pipeline"

    def grid(self, step: int) -> Path:
        """Return the path of the picture of samples after `step` steps."""
        return self.path / "samples" / f"step-{step:08d}.png"

    def claim(self, resume: str | None, trained: dict[str, Any]) -> Path | None:
        """Make sure that the folder is this run's to write, and make it.

        Args:
            resume: Checkpoint to go on from, "latest", or None for a new start.
            trained: What `checkpoint.check_trained` compares.

        Returns:
            The checkpoint to go on from, or None.

        Raises:
            FileExistsError: If the folder holds another run, or a later part of this one.
            FileNotFoundError: If the checkpoint to resume from is none.
            ValueError: If the checkpoint is of another network, noise schedule or optimizer, or damaged; or if a part
                of the folder is a link to another place.
            OSError: If the folder cannot be written.
        """
        checkpoint = find_checkpoint(resume, self.checkpoints) if resume else None
        inside = checkpoint is not None and self.checkpoints.resolve() == checkpoint.resolve().parent
        if self.config.exists() and not (inside or resume == "latest"):
            raise FileExistsError(f"{self.path} holds a run already; give another output_dir, or --resume latest")
        if resume and checkpoint is None and self.pipeline.exists():
            raise FileExistsError(
                f"{self.path} holds a run that has ended, and none of its checkpoints; give another output_dir"
            )
        if checkpoint is not None:
            check_trained(checkpoint, trained)
            newest = list_checkpoints(self.checkpoints)[-1] if inside else checkpoint
            if resume != "latest" and newest.name > checkpoint.name:
                raise FileExistsError(
                    f"{self.checkpoints} holds later checkpoints than {checkpoint.name}, up to {newest.name}; "
                    "delete them to go on from it, or give another output_dir"
                )
        parts = (self.config, self.metrics, self.checkpoints, self.grid(0).parent, self.pipeline, self.path / "wandb")
        for path in parts:
            if path.is_symlink():
                raise ValueError(f"{path} is a link; a run writes into its own folder only: give another output_dir")
        check_writable(self.config)
        self.path.mkdir(parents=True, exist_ok=True)
        return checkpoint

    def start(self, settings: dict[str, Any]) -> None:
        """Write the settings down, and drop what a kill left half-written and the pipeline of an earlier end."""
        for path in self.path.rglob(".*.partial*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with atomic_path(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False))
        shutil.rmtree(self.pipeline, ignore_errors=True)
