"""The optimizers by name."""

from typing import Any

from diffusers import ModelMixin
from torch.optim import AdamW, Optimizer

from denoiser.training.config import TrainingConfig


def make_optimizer(training: TrainingConfig, model: ModelMixin) -> Optimizer:
    """Return the optimizer of all the weights.

    "muon" orthogonalises the updates of the convolutions between the first and the last, as matrices of a row for each
    output channel, and scales them to the size of AdamW's (Liu et al. 2025, eq. 4), so one learning rate fits all; the
    rest has AdamW. "soap" is Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024).

    Raises:
        ValueError: If the package that has it is not installed.
    """
    settings: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": training.adam_betas,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "adamw":
        return AdamW(model.parameters(), fused=True, **settings)
    try:
        from pytorch_optimizer import SOAP, Muon
    except ModuleNotFoundError as error:
        raise ValueError(f"optimizer {training.optimizer}: {error}; pip install pytorch_optimizer") from error
    if training.optimizer == "soap":
        return SOAP(model.parameters(), **settings)
    convolutions = [parameter for parameter in model.parameters() if parameter.ndim == 4][1:-1]
    inner = {id(parameter) for parameter in convolutions}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inner]
    return Muon(
        [
            {"params": convolutions, "use_muon": True, "use_adjusted_lr": True, **settings},
            {"params": rest, "use_muon": False, **settings},
        ]
    )
