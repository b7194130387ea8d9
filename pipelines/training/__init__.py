"""What trains a backbone."""

from pipelines.training.config import DataConfig, RunConfig, TrackingConfig, TrainingConfig
from pipelines.training.trainer import Trainer, start_accelerator

__all__ = ["DataConfig", "RunConfig", "TrackingConfig", "Trainer", "TrainingConfig", "start_accelerator"]
