"""The weights that a training starts from."""

from typing import Any

from diffusers import DDPMScheduler, ModelMixin

from pipelines import DenoisingPipeline

LABEL_TABLES = ("label_embedding.", "class_embedding.")  # of UNet, and of diffusers' networks
FREE = ("sample_size", "num_class_embeds", "dropout")  # arguments that may differ
SCHEDULE = ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")


def start_from(model: ModelMixin, noise_schedule: DDPMScheduler, origin: DenoisingPipeline, name: str) -> None:
    """Load the weights of a pipeline into a network; a label table of another length stays as initialised.

    Raises:
        ValueError: If the network is of another class or architecture, or the noise schedule is another.
    """
    start, kind = origin.unet, type(origin.unet).__name__
    if type(model) is not type(start):
        raise ValueError(f"{name} holds a {kind}, and the model is a {type(model).__name__}; give --model {kind}")
    names = [name for name in model.config if name[0] != "_"]
    pairs = [("model", names, model, start), ("scheduler", SCHEDULE, noise_schedule, origin.noise_schedule)]
    for section, keys, ours, theirs in pairs:
        for key in keys:
            own, other = (_plain(part.config.get(key)) for part in (ours, theirs))
            if own != other and key not in FREE:
                channels = "images of as many channels (--data.channels), or " if key.endswith("_channels") else ""
                raise ValueError(f"the {section} of {name} has {key} {other}, not {own}; give {channels}its own")
    weights, own_weights = start.state_dict(), model.state_dict()
    tables = [key for key in own_weights if key.startswith(LABEL_TABLES)]
    kept = [key for key in tables if key not in weights or weights[key].shape != own_weights[key].shape]
    loaded = {key: value for key, value in weights.items() if key in own_weights and key not in kept}
    model.load_state_dict({**{key: own_weights[key] for key in kept}, **loaded})


def _plain(value: Any) -> Any:
    """Return a tuple as a list, as it is in files."""
    return list(value) if isinstance(value, tuple) else value
