"""Training of a denoiser: settings, learner and loop."""

from pipelines.training.config import DataConfig, RunConfig, TrackingConfig, TrainingConfig
from pipelines.training.learner import Learner
from pipelines.training.trainer import Trainer, start_accelerator

__all__ = ["DataConfig", "Learner", "RunConfig", "TrackingConfig", "Trainer", "TrainingConfig", "start_accelerator"]
