"""The weights that a training starts from."""

from typing import Any

from diffusers import DDPMScheduler, ModelMixin

from pipelines import DenoisingPipeline

LABEL_TABLES = ("label_embedding.", "class_embedding.")  # of UNet, and of diffusers' networks
OF_THE_SET = ("sample_size", "num_class_embeds")  # arguments that may differ


def start_from(model: ModelMixin, noise_schedule: DDPMScheduler, origin: DenoisingPipeline, name: str) -> None:
    """Load the weights of a pipeline into a network; a label table of another length stays as initialised.

    Raises:
        ValueError: If the network is of another class or architecture, or predicts something else.
    """
    start, kind = origin.unet, type(origin.unet).__name__
    if type(model) is not type(start):
        raise ValueError(f"{name} holds a {kind}, and the model is a {type(model).__name__}; give --model {kind}")
    if noise_schedule.config.prediction_type != (predicts := origin.noise_schedule.config.prediction_type):
        raise ValueError(f"the network of {name} predicts {predicts}; give --scheduler.prediction_type {predicts}")
    own, weights = model.state_dict(), start.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    other = [key for key in own.keys() | weights.keys() if key not in fitting and not key.startswith(LABEL_TABLES)]
    if other:
        ours, theirs = (_arguments(network) for network in (model, start))
        changed = [f"{key} {theirs[key]}, not {value}" for key, value in ours.items() if theirs.get(key) != value]
        raise ValueError(f"the network of {name} has {', '.join(changed) or min(other)}; give images and options alike")
    model.load_state_dict({**own, **fitting})


def _arguments(model: ModelMixin) -> dict[str, Any]:
    """Return the arguments of a network that must agree, with lists as they are in files."""
    given = {key: value for key, value in model.config.items() if key[0] != "_" and key not in OF_THE_SET}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
