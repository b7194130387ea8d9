"""What trains a backbone."""

from denoiser.training.config import DataConfig, RunConfig, TrackingConfig, TrainingConfig
from denoiser.training.trainer import Trainer, start_accelerator

__all__ = ["DataConfig", "RunConfig", "TrackingConfig", "Trainer", "TrainingConfig", "start_accelerator"]
