"""The optimizers by name."""

from typing import Any

from diffusers import ModelMixin
from torch import nn
from torch.optim import AdamW, Optimizer

from pipelines.training.config import TrainingConfig

OPTIMIZERS = ("adamw", "muon", "soap")


def make_optimizer(training: TrainingConfig, model: ModelMixin) -> Optimizer:
    """Return the optimizer of all the weights.

    "muon" orthogonalises the updates of the convolutions between the first and the last, as matrices of a row for each
    output channel, and scales them to the size of AdamW's (Liu et al. 2025, eq. 4), so one learning rate fits all; the
    rest has AdamW. "soap" is Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024). The betas are those
    of Adam: Muon's momentum and the decay of SOAP's preconditioner are their package's.

    Raises:
        ValueError: If the name is unknown, or the package that has it is not installed.
    """
    settings: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": training.adam_betas,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is '{training.optimizer}'; it is one of {', '.join(OPTIMIZERS)}")
    if training.optimizer == "adamw":
        return AdamW(model.parameters(), fused=True, **settings)
    try:
        from pytorch_optimizer import SOAP, Muon
    except ImportError as error:
        raise ValueError(f"optimizer {training.optimizer}: {error}; pip install 'denoiser[bench]'") from error
    if training.optimizer == "soap":
        return SOAP(model.parameters(), **settings)
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)][1:-1]
    inner = {id(parameter) for parameter in convolutions}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inner]
    return Muon(
        [
            {"params": convolutions, "use_muon": True, "use_adjusted_lr": True, **settings},
            {"params": rest, "use_muon": False, **settings},
        ]
    )
