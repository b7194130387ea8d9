"""Checkpoints: folders that hold everything that resuming needs, and that appear whole or not at all.

A manifest has the size and the SHA-256 of each file, so that what was cut short or altered afterwards is known.
"""

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
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import AdamW, Optimizer

from denoiser.files import sha256, sync, sync_all
from denoiser.processes import split_as, whole

logger = logging.getLogger(__name__)

PREFIX = "step-"
STATE_FILE, EMA_FILE, MANIFEST = "state.json", "ema.safetensors", "manifest.json"
BOUND_TO = {
    "model": "another architecture",
    "scheduler": "another noise schedule",
    "optimizer": "another optimizer",
    "distillation": "another distillation, or none",
}
STATE_KEYS = {"progress", "ema_steps", "draws", *BOUND_TO}
TORCH_CANNOT_WRITE = "inline_container", "iostream error"  # what torch.save says of a full disk
ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimizer steps taken.
        seconds: Time spent, by the clock.
    """

    step: int = 0
    seconds: float = 0.0


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after `step` optimizer steps."""
    return f"{PREFIX}{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first, whether they are whole or not; other names are a user's own."""
    named = (path for path in folder.glob(f"{PREFIX}*") if re.fullmatch(f"{PREFIX}[0-9]{{8,}}", path.name))
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=step_of)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint is of, by its name."""
    return int(path.name.removeprefix(PREFIX))


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint that `resume` means: a path, or the newest whole one in `folder` for "latest".

    Returns:
        The checkpoint; None for "latest" where there is none yet.

    Raises:
        FileNotFoundError: If the path is not a checkpoint.
        ValueError: If it is damaged, or if there are checkpoints and all are.
    """
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
            logger.warning("passed over: %s", error)
        else:
            return path
    if found:
        raise ValueError(f"none of the checkpoints in {folder} is whole; start anew in another output_dir")
    return None


def check_whole(path: Path) -> None:
    """Raise `ValueError` unless the checkpoint has the files that its manifest lists, unaltered, and no others."""
    try:
        if not (path / MANIFEST).is_file():
            raise FileNotFoundError(f"it has no {MANIFEST}")
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sums = {name: (facts["bytes"], facts["sha256"]) for name, facts in listed.items()}
        files = _files(path)
        if names := sorted(files.keys() ^ sums.keys()):
            raise ValueError(f"{names[0]} is {'not in the manifest' if names[0] in files else 'missing'}")
        for name, file in files.items():
            if (file.stat().st_size, sha256(file)) != sums[name]:
                raise ValueError(f"{name} is not as it was written")
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, ema: EMAModel, trained: dict[str, Any]
) -> Path:
    """Save the run's state on all processes.

    The optimizer, the weights and the loss scaler go through Accelerate; the averaged weights are safetensors. What
    is `trained` (the keys of `BOUND_TO`, and "draws") is written down for `check_trained`. All of it is on the disk
    before it gets its name.

    Raises:
        OSError: On all processes, if one of them cannot write; other checkpoints are as they were.
    """
    path = folder / checkpoint_name(progress.step)
    temporary = folder / f".{path.name}.partial"
    with _together(accelerator):
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    averages = {str(index): whole(tensor).contiguous() for index, tensor in enumerate(ema.shadow_params)}
    try:
        with _together(accelerator):
            accelerator.save_state(str(temporary))
        with _together(accelerator):
            if accelerator.is_main_process:
                save_file(averages, temporary / EMA_FILE)
                state = {"progress": asdict(progress), "ema_steps": ema.optimization_step, **trained}
                (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
                files = _files(temporary)
                sums = {name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in files.items()}
                (temporary / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
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
    """Delete the checkpoints up to `newest` but the last `kept` of them, and those of every `keep_every` steps."""
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
    """Raise `OSError` on all processes if the block does on one of them; none goes on before all have come here."""
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


def _files(path: Path) -> dict[str, Path]:
    """Return all files of a checkpoint but the manifest, by their names in it."""
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    files.pop(MANIFEST, None)
    return files


def check_trained(path: Path, trained: dict[str, Any]) -> None:
    """Raise `ValueError` if the checkpoint is of another architecture, noise schedule, optimizer or distillation.

    Other draws are allowed, and warned of: the run does not end as it would have.
    """
    state = _read_state(path)
    for part, what in BOUND_TO.items():
        if difference := _difference(state[part], trained[part]):
            raise ValueError(f"{path} holds {what}: {difference}; use the {part} settings it was made with")
    if difference := _difference(state["draws"], trained["draws"]):
        logger.warning("%s was made with %s: the run goes on, and ends otherwise than it would have", path, difference)


def load_checkpoint(accelerator: Accelerator, path: Path, ema: EMAModel, optimizers: Sequence[Optimizer]) -> Progress:
    """Put the run's state back as it was at the checkpoint; the optimizers keep the settings they have.

    Raises:
        ValueError: If one of its files is missing or damaged.
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
        averages = load_file(path / EMA_FILE)
        for index, tensor in enumerate(ema.shadow_params):
            if averages[str(index)].shape != tensor.shape:
                raise ValueError(f"{EMA_FILE} is of other shapes")
            tensor.copy_(split_as(tensor, averages[str(index)]))
    except Exception as error:  # whatever the loaders make of a file that a stranger has made
        raise _damaged(path, error) from error
    ema.optimization_step = state["ema_steps"]
    return Progress(**state["progress"])


def _fit_moments(optimizer: Optimizer) -> None:
    """Lay the moments out in memory as their weights are: a fused step goes through both side by side.

    Raises:
        ValueError: If a moment is missing or not of its weight's shape, or the count of steps is not one number.
    """
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
    if not _sensible(state):
        raise _damaged(path, ValueError(f"{STATE_FILE} has values of another kind"))
    return state


def _sensible(state: dict[str, Any]) -> bool:
    """Return whether the values are of the kinds that were written."""
    parts = [state[name] for name in STATE_KEYS - {"ema_steps"}]
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
    """Say what differs between the settings of two components: the class if it is named, or else the arguments."""
    if saved.get("class_path") != wanted.get("class_path"):
        return f"{saved.get('class_path')}, not {wanted.get('class_path')}"
    before, after = saved.get("init_args", saved), wanted.get("init_args", wanted)
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return ", ".join(f"{name} {before.get(name)}, not {after.get(name)}" for name in names)
