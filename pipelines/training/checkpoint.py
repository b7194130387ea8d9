"""The run folder and its checkpoints, which appear whole or not at all."""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer

from denoiser.checks import drop_removed
from denoiser.files import MANIFEST, atomic_path, check_manifest, check_writable, locked, sync, sync_all, write_manifest
from denoiser.processes import split_as, whole

logger = logging.getLogger(__name__)

PREFIX = "step-"
STATE_FILE, EMA_FILE, GUIDE_FILE = "state.json", "ema.safetensors", "guide.safetensors"
IDENTITY = {
    "model": "another architecture",
    "scheduler": "another noise schedule",
    "distillation": "another distillation, or none",
    "data": "another image set",
    "start": "a run from other weights",
}
RECENT = ("data", "start")  # parts that earlier versions did not write
STATE_KEYS = {"progress", "ema_steps", "draws", "model", "scheduler"}
TORCH_CANNOT_WRITE = "inline_container", "iostream error"  # torch.save's words for a full disk
ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Progress:
    """Optimizer steps and wall-clock seconds of a run."""

    step: int = 0
    seconds: float = 0.0


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after `step` optimizer steps."""
    return f"{PREFIX}{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first, whole or not; other names are ignored."""
    named = (path for path in folder.glob(f"{PREFIX}*") if re.fullmatch(f"{PREFIX}[0-9]{{8,}}", path.name))
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=step_of)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint, by its name."""
    return int(path.name.removeprefix(PREFIX))


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint at the path `resume`, or for "latest" the newest whole one in `folder`."""
    if resume != "latest":
        if not (Path(resume) / MANIFEST).is_file():
            raise FileNotFoundError(f"{resume} is not a checkpoint: it has no {MANIFEST}; give a folder, or 'latest'")
        check_whole(Path(resume))
        return Path(resume)
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            check_whole(path)
        except ValueError as error:
            logger.warning("skipped: %s", error)
        else:
            return path
    if found:
        raise ValueError(f"none of the checkpoints in {folder} is whole; start anew in another output_dir")
    return None


def check_whole(path: Path) -> None:
    """Raise `ValueError` unless a checkpoint has exactly the files of its manifest, unaltered."""
    try:
        check_manifest(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
    ema: EMAModel,
    identity: dict[str, Any],
    guide: Sequence[Tensor] | None = None,
) -> Path:
    """Save the state of a run, on all processes.

    Accelerate saves weights, optimizers and loss scaler; the averaged weights and the guide's, if it has
    any yet, are safetensors. The checkpoint gets its name once it is on the disk.
    """
    path = folder / checkpoint_name(progress.step)
    temporary = folder / f".{path.name}.partial"
    with _together(accelerator):
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    averages = {
        name: {str(index): whole(tensor).contiguous() for index, tensor in enumerate(weights)}
        for name, weights in ((EMA_FILE, ema.shadow_params), (GUIDE_FILE, guide))
        if weights is not None
    }
    try:
        with _together(accelerator):
            accelerator.save_state(str(temporary))
        with _together(accelerator):
            if accelerator.is_main_process:
                for name, tensors in averages.items():
                    save_file(tensors, temporary / name)
                state = {"progress": asdict(progress), "ema_steps": ema.optimization_step, **identity}
                (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
                write_manifest(temporary)
                sync_all(temporary)
                if path.exists():
                    shutil.rmtree(path)
                temporary.rename(path)
                sync(folder)
    except OSError:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def drop_checkpoints(folder: Path, newest: Path, kept: int, keep_every: int | None) -> None:
    """Delete the checkpoints up to `newest`, except the last `kept` and every `keep_every` steps."""
    older = [path for path in list_checkpoints(folder) if step_of(path) <= step_of(newest)]
    for path in older[:-kept]:
        if not (keep_every and step_of(path) % keep_every == 0):
            going = path.with_name(f".{path.name}.dropped.partial")  # or a kill would leave a torn checkpoint
            try:
                path.rename(going)
                shutil.rmtree(going)
            except OSError as error:
                logger.warning("%s cannot be deleted (%s); going on", path, error)


@contextmanager
def _together(accelerator: Accelerator) -> Iterator[None]:
    """Raise `OSError` on all processes if the block raises it on one; a barrier for all."""
    failure = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        failure = f"{type(error).__name__}: {error}"
    except RuntimeError as error:
        if not any(word in str(error) for word in TORCH_CANNOT_WRITE):
            raise
        failure = f"a file cannot be written whole, as on a full disk: {error}"
    if failures := [told for told in gather_object([failure]) if told]:
        raise OSError(failures[0])


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """Raise `ValueError` if a checkpoint is of another network, noise schedule or distillation.

    A difference in the seed or in the images of a step is allowed, with a warning: the result differs.
    """
    state = _read_state(path)
    for part, what in IDENTITY.items():
        if part in RECENT and part not in state:
            continue
        if difference := _difference(state.get(part, {}), identity.get(part, {})):
            raise ValueError(f"{path} holds {what}: {difference}; use the {part} settings it was made with")
    if difference := _difference(state["draws"], identity["draws"]):
        logger.warning("%s was made with %s: the run goes on, and its result will differ", path, difference)


def load_checkpoint(
    accelerator: Accelerator, path: Path, ema: EMAModel, optimizers: Sequence[Optimizer]
) -> tuple[Progress, list[Tensor] | None]:
    """Load the state of a run, and return its progress and its guide's weights, if it had any.

    The optimizers keep their present settings.
    """
    state = _read_state(path)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    try:
        accelerator.load_state(str(path))
        accelerator.step = 0  # passes into a step; the saved count is wrong for another accumulation
        for optimizer in optimizers:
            _fit_moments(optimizer)
        loaded = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, own in zip(loaded, settings, strict=True):
            group.update(own)
        _fill(ema.shadow_params, path / EMA_FILE)
        guide = None
        if (path / GUIDE_FILE).is_file():
            guide = [tensor.clone() for tensor in ema.shadow_params]
            _fill(guide, path / GUIDE_FILE)
    except Exception as error:  # the loaders raise anything for a file that a stranger has made
        raise _damaged(path, error) from error
    ema.optimization_step = state["ema_steps"]
    return Progress(**state["progress"]), guide


def _fill(weights: Sequence[Tensor], path: Path) -> None:
    """Copy averaged weights from a file."""
    saved = load_file(path)
    for index, tensor in enumerate(weights):
        if saved[str(index)].shape != tensor.shape:
            raise ValueError(f"{path.name} is of other shapes")
        tensor.copy_(split_as(tensor, saved[str(index)]))


def _fit_moments(optimizer: Optimizer) -> None:
    """Give the moments the memory layout of their weights, which a fused step needs."""
    for parameter, state in optimizer.state.items():
        if type(getattr(optimizer, "optimizer", optimizer)) is AdamW and state.keys() != ADAMW_STATE:
            raise ValueError("the optimizer's state is of another kind")
        for name in {"exp_avg", "exp_avg_sq"} & state.keys():
            if state[name].shape != parameter.shape:
                raise ValueError(f"the optimizer's {name} is of another shape than its weight")
            state[name] = torch.empty_like(parameter).copy_(state[name])
        step = state.get("step", 0)
        if isinstance(step, torch.Tensor) and (step.layout != torch.strided or step.numel() != 1):
            raise ValueError("the optimizer's step is not one number")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not state:
        raise _damaged(path, TypeError(f"{STATE_FILE} holds no settings"))
    if missing := STATE_KEYS - state.keys():
        raise ValueError(
            f"{path / STATE_FILE} lacks {', '.join(sorted(missing))}: another version of this package wrote it; "
            "go on with that, or start anew in another output_dir"
        )
    if not _valid(state):
        raise _damaged(path, ValueError(f"{STATE_FILE} has values of another kind"))
    optimizer = state.get("optimizer", {"name": "adamw"})  # which versions with several optimizers wrote
    if state["model"].get("class_path") == "denoiser.unet.UNet":
        state["model"]["init_args"] = drop_removed("UNet", state["model"].get("init_args", {}))
    drop_removed("training", {"optimizer": optimizer.get("name")})
    return state


def _valid(state: dict[str, Any]) -> bool:
    """Return whether the values have the types that were written."""
    parts = [value for name, value in state.items() if name != "ema_steps"]
    if not all(isinstance(part, dict) and isinstance(part.get("init_args", {}), dict) for part in parts):
        return False
    progress = state["progress"]
    counts = [progress.get("step"), state["ema_steps"]]
    return (
        progress.keys() == {"step", "seconds"}
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and type(progress["seconds"]) in (int, float)
        and 0 <= progress["seconds"] < math.inf
        and isinstance(state["model"].get("class_path", ""), str)
    )


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} is damaged ({reason}); --resume latest goes on from the newest that is whole")


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Describe the difference between two settings: their classes, or their arguments."""
    if saved.get("class_path") != wanted.get("class_path"):
        return f"{saved.get('class_path')}, not {wanted.get('class_path')}"
    before, after = saved.get("init_args", saved), wanted.get("init_args", wanted)
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return ", ".join(f"{name} {before.get(name)}, not {after.get(name)}" for name in names)


class RunFolder:
    """Folder of a run: `config.yaml`, `metrics.jsonl`, `samples/`, `checkpoints/`, `pipeline/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.checkpoints, self.pipeline = path / "checkpoints", path / "pipeline"
        self.found: list[Path] | None = None  # the checkpoints at the time of the claim

    def grid(self, step: int) -> Path:
        """Return the path of the sample grid after `step` steps."""
        return self.path / "samples" / f"step-{step:08d}.png"

    def claim(self, resume: str | None, identity: dict[str, Any], writes: bool = True) -> Path | None:
        """Check that the run may write the folder, make it, and return the checkpoint to resume from.

        Raises:
            FileExistsError: If the folder holds another run or later checkpoints, or a run is writing.
            FileNotFoundError: If the checkpoint to resume from does not exist.
            ValueError: If the checkpoint is damaged or of another identity, or a part of the folder a link.
            OSError: If the folder cannot be written.
        """
        check_writable(self.config)
        if writes and self.path.is_dir():
            with self.held():  # a run that is writing is told of before a checkpoint is read
                pass
        checkpoint = self._checked(resume, identity)
        self.found = list_checkpoints(self.checkpoints)
        self.path.mkdir(parents=True, exist_ok=True)
        return checkpoint

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other runs."""
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

    def _checked(self, resume: str | None, identity: dict[str, Any]) -> Path | None:
        """Return the checkpoint to resume from, or None."""
        checkpoint = find_checkpoint(resume, self.checkpoints) if resume else None
        inside = checkpoint is not None and self.checkpoints.resolve() == checkpoint.resolve().parent
        if self.config.exists() and not (inside or resume == "latest"):
            raise FileExistsError(f"{self.path} holds a run already; give another output_dir, or --resume latest")
        if resume and checkpoint is None and self.pipeline.exists():
            raise FileExistsError(
                f"{self.path} holds a run that has ended, and none of its checkpoints; give another output_dir"
            )
        if checkpoint is not None:
            check_identity(checkpoint, identity)
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
        """Write `config.yaml`, and delete half-written files and the pipeline of an earlier end."""
        for path in self.path.rglob(".*.partial*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with atomic_path(self.config) as temporary:
            text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
            temporary.write_text(f"# {circumstances}\n{text}", encoding="utf-8")
        shutil.rmtree(self.pipeline, ignore_errors=True)
