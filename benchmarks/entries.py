"""Entries of a benchmark: command lines of `scripts/train.py` in a YAML file, and keys of their results."""

import hashlib
import json
import shlex
import subprocess
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from diffusers import DDPMScheduler, ModelMixin

from benchmarks.machine import processor
from denoiser.checks import pair
from denoiser.data import CLASS_NAMES
from pipelines.commands.parsed_run import ParsedRun
from pipelines.evaluation.judge_networks import IMAGE_SHAPE
from pipelines.training.config import RunConfig, components, settings

ROOT = Path(__file__).parents[1]
CODE = ("denoiser", "pipelines", "benchmarks")
# Settings of what is written when and where, which do not change a result.
_ASIDE = ("output_dir", "data", "tracking", "hub_repo", "resume")
_ASIDE_IN_TRAINING = ("log_every", "sample_every", "evaluate_every", "checkpoint_every", "checkpoints_kept")
_PACKAGES = (
    *("torch", "diffusers", "accelerate", "einops", "torchvision"),
    *("denoising-diffusion-pytorch", "smalldiffusion"),
)


@dataclass(frozen=True)
class Entry:
    """A network and its training."""

    name: str
    arguments: tuple[str, ...]
    seconds: tuple[float, ...]

    def build(self, seconds: float, seed: int) -> tuple[RunConfig, ModelMixin, DDPMScheduler]:
        """Return settings, initialised network and noise schedule of a training of some seconds."""
        given = [*self.arguments, "--training.seed", str(seed), "--output_dir", "unused"]
        run = ParsedRun(given)
        model, noise_schedule = run.build(IMAGE_SHAPE, len(CLASS_NAMES) if run.config.data.labels else None)
        training = replace(run.config.training, max_steps=None, max_minutes=seconds / 60)
        return replace(run.config, training=training), model, noise_schedule


@dataclass(frozen=True)
class Field:
    """Entries that are compared."""

    entries: dict[str, Entry]
    baseline: str


def read_field(path: Path, data_root: str | None = None) -> Field:
    """Read a file of entries."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        base, seconds, baseline = shlex.split(content["arguments"]), content["seconds"], content["baseline"]
        given = () if data_root is None else ("--data.root", data_root)
        entries = {}
        for name, entry in content["entries"].items():
            lengths = tuple(float(number) for number in entry.get("seconds", seconds))
            entries[name] = Entry(name, (*base, *shlex.split(entry["arguments"]), *given), lengths)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); benchmarks/configs/networks.yaml shows how") from error
    for name in (*entries, baseline):
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name {name!r} is no text; give one, in quotes if it is a number")
    if baseline not in entries:
        raise ValueError(f"{path}: the baseline '{baseline}' is none of {', '.join(entries)}")
    for entry in entries.values():
        if not entry.seconds or min(entry.seconds) <= 0:
            raise ValueError(f"{path}: the seconds of '{entry.name}' are {entry.seconds}; give numbers above 0")
    return Field(entries, baseline)


def fingerprint(config: RunConfig, model: ModelMixin, noise_schedule: DDPMScheduler) -> dict[str, Any]:
    """Return all that a training's result depends on: settings, code, package versions, processor."""
    shape = (model.config.in_channels, *pair(model.config.sample_size))
    if shape != IMAGE_SHAPE:
        raise ValueError(f"the network makes images of {shape} (channels, height, width), the judges see {IMAGE_SHAPE}")
    described = {**settings(config), **components(model, noise_schedule)}
    kept = {name: value for name, value in described.items() if name not in _ASIDE}
    kept["training"] = {name: value for name, value in kept["training"].items() if name not in _ASIDE_IN_TRAINING}
    versions = {name: found[0].version for name in _PACKAGES if (found := [*distributions(name=name)])}
    return {"settings": kept, "code": code_trees(), "versions": versions, "processor": processor()}


def digest(facts: dict[str, Any]) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def code_trees() -> str | None:
    """Return the git trees of the code; None if it has uncommitted changes, or there is no git."""
    try:
        changes = _git("status", "--porcelain", "--", *CODE)
        return None if changes else _git("rev-parse", *(f"HEAD:{folder}" for folder in CODE))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    ended = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, encoding="utf-8")
    return ended.stdout.strip()
