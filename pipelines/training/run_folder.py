"""The folder that a run leaves: what is where in it, and whose it is to write."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from denoiser.files import atomic_path, check_writable, locked
from pipelines.training.checkpoint import check_trained, find_checkpoint, list_checkpoints


class RunFolder:
    """`config.yaml`, `metrics.jsonl`, `samples/`, `checkpoints/` and, once the run has ended, `pipeline/`.

    Args:
        path: The folder, made when it is claimed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.checkpoints, self.pipeline = path / "checkpoints", path / "pipeline"
        self.found: list[Path] | None = None  # the checkpoints, when it was claimed

    def grid(self, step: int) -> Path:
        """Return the path of the picture of samples after `step` steps."""
        return self.path / "samples" / f"step-{step:08d}.png"

    def claim(self, resume: str | None, trained: dict[str, Any], writes: bool = True) -> Path | None:
        """Make sure that the folder is this run's to write, and make it.

        Args:
            resume: Checkpoint to go on from, "latest", or None for a new start.
            trained: What `checkpoint.check_trained` compares.
            writes: Whether this is the one process of the run that writes there.

        Returns:
            The checkpoint to go on from, or None.

        Raises:
            FileExistsError: If the folder holds another run, or a later part of this one, or a run is writing there.
            FileNotFoundError: If the checkpoint to resume from is none.
            ValueError: If the checkpoint is of another network, noise schedule or optimizer, or damaged; or if a part
                of the folder is a link to another place.
            OSError: If the folder cannot be written.
        """
        check_writable(self.config)
        if writes and self.path.is_dir():
            with self.held():  # if only for now: better to learn of another run before a checkpoint is read
                pass
        checkpoint = self._checked(resume, trained)
        self.found = list_checkpoints(self.checkpoints)
        self.path.mkdir(parents=True, exist_ok=True)
        return checkpoint

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep all other runs out of the folder.

        Raises:
            FileExistsError: If another run holds it, or has written there since it was claimed.
        """
        try:
            lock = locked(self.path / ".lock")
        except BlockingIOError as error:
            raise FileExistsError(
                f"another run is writing in {self.path}; wait for its end, or give another output_dir"
            ) from error
        with lock:
            if self.found not in (None, list_checkpoints(self.checkpoints)):
                raise FileExistsError(f"another run has written in {self.path}; start again with --resume latest")
            self.found = None  # from now on only this run writes
            yield

    def _checked(self, resume: str | None, trained: dict[str, Any]) -> Path | None:
        """Return the checkpoint to go on from, or None, if the folder is this run's to write."""
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
        return checkpoint

    def start(self, settings: dict[str, Any], circumstances: str) -> None:
        """Write the settings down, and drop what a kill left half-written and the pipeline of an earlier end.

        Args:
            settings: What `config.yaml` holds.
            circumstances: What the run goes by besides; a comment at the head of it.
        """
        for path in self.path.rglob(".*.partial*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with atomic_path(self.config) as temporary:
            text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
            temporary.write_text(f"# {circumstances}\n{text}", encoding="utf-8")
        shutil.rmtree(self.pipeline, ignore_errors=True)
