import json

import pytest
import yaml

from denoiser.files import MANIFEST, sha256
from pipelines import SamplingConfig
from pipelines.training import Learner, RunConfig, TrackingConfig, Trainer, TrainingConfig, start_accelerator
from tests.conftest import tiny_unet


def sign(checkpoint):
    """Make the manifest of a checkpoint anew, as a stranger can who has altered it."""
    files = [path for path in checkpoint.iterdir() if path.name != MANIFEST]
    sums = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (checkpoint / MANIFEST).write_text(json.dumps(sums), encoding="utf-8")


@pytest.fixture
def make_trainer(tmp_path, some_images, scheduler):
    """Return a maker of trainers of a tiny network in float32, for ten steps unless told otherwise."""

    def make(
        output_dir="run",
        model=None,
        resume=None,
        images=some_images,
        tracking="disabled",
        held_out=None,
        scheduler=scheduler,
        **options,
    ):
        defaults = {"max_steps": 10, "batch_size": 16, "warmup_steps": 2, "mixed_precision": "no", "log_every": 5}
        config = RunConfig(
            output_dir=str(tmp_path / output_dir),
            training=TrainingConfig(**{**defaults, **options}),
            sampling=SamplingConfig(num_images=4, steps=2),
            tracking=TrackingConfig(mode=tracking),
            resume=resume,
        )
        accelerator = start_accelerator(config)
        learner = Learner(config.training, model or tiny_unet(), scheduler, accelerator, images)
        return Trainer(config, learner, held_out)

    return make


@pytest.fixture
def read_config():
    return lambda trainer: yaml.safe_load((trainer.folder.path / "config.yaml").read_text(encoding="utf-8"))
