"""Callbacks after each step, called as diffusers' pipelines call theirs."""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

# The noisy images after the step, the clean image predicted in it, and diffusers' name for the former.
TENSOR_INPUTS = ("sample", "clean", "latents")
_TOLD_BY_DEFAULT = TENSOR_INPUTS[:2]


class StepReport:
    """Tells a callback of a step, and takes from it what replaces the noisy images.

    Args:
        callback: None for none.
        names: Of the tensors that it is told, among `TENSOR_INPUTS`; diffusers' own callbacks name theirs.

    Attributes:
        names: Of the tensors that are needed.

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(self, callback: StepCallback | None, names: Sequence[str] | None = None) -> None:
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = callback.tensor_inputs
        self.callback = callback
        self.names = () if callback is None else tuple(_TOLD_BY_DEFAULT if names is None else names)
        if unknown := [name for name in self.names if name not in TENSOR_INPUTS]:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {unknown[0]!r}; the tensors are {', '.join(TENSOR_INPUTS)}"
            )

    def __call__(
        self, pipeline: DiffusionPipeline, step: int, timestep: Tensor, sample: Tensor, clean: Tensor | None
    ) -> Tensor:
        """Return the noisy images to go on with, shaped as `sample`."""
        if self.callback is None:
            return sample
        tensors: dict[str, Any] = {"sample": sample, "clean": clean, "latents": sample}
        answer = self.callback(pipeline, step, timestep, {name: tensors[name] for name in self.names})
        answer = {} if answer is None else answer
        if not isinstance(answer, dict):
            raise ValueError(f"callback_on_step_end returned a {type(answer).__name__}; it returns a dict, or None")
        given = (answer.get(name, sample) for name in ("sample", "latents"))
        return next((images for images in given if images is not sample), sample)
