"""`DenoisingPipeline`: from noise to images with any backbone and any diffusers scheduler."""

import inspect
import os
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from denoiser.checks import check_positive, did_you_mean, pair
from denoiser.randomness import SAMPLING, seeded_generator
from pipelines.schedulers import check_steps

OUTPUT_TYPES = ("pil", "np", "pt")
Labels = int | str | Sequence[int | str] | Tensor | np.ndarray
StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


class DenoisingPipeline(DiffusionPipeline):
    """Generates images with a noise-prediction network, with or without classes.

    Args:
        unet: `UNet`, `BasicUNet`, or another network with `UNet2DModel`'s call contract.
        scheduler: Any diffusers scheduler that takes the network's prediction type.
        class_names: Name of each class, by label; None if the classes have no names or there are none.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=None if class_names is None else list(class_names))

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the network, or None if it is unconditional."""
        return self.unet.config.get("num_class_embeds")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.unet.config.in_channels, *pair(self.unet.config.sample_size))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate a batch of images.

        Args:
            batch_size: Number of images; by default one for each label, or one.
            class_labels: A class for all images or one for each, by index or by name; None means no class.
            guidance_scale: Classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w): 1 is the plain
                conditional network at a single call a step; above 1, each step costs a call of twice the batch.
            num_inference_steps: Steps of the scheduler, from 1 to its number of training timesteps.
            generator: Source of all randomness; a list gives each image its own.
            seed: In the place of a generator: image i is then a function of (seed, i) alone.
            output_type: "pil" for a list of PIL images, "np" for `(batch, height, width, channels)` in [0, 1], "pt"
                for `(batch, channels, height, width)` in [0, 1].
            return_dict: False for a plain tuple.
            callback_on_step_end: Called as `(pipeline, step, timestep, {"sample": noisy})` after each step; what it
                returns under "sample" replaces the noisy images, `(batch, channels, height, width)`.

        Returns:
            `ImagePipelineOutput` whose `images` are as `output_type` says.

        Raises:
            ValueError: If a count, a label, the output type or the combination of arguments is wrong.
        """
        labels = self._label_tensor(class_labels, batch_size)
        if batch_size is None:
            batch_size = 1 if labels is None else len(labels)
        self._check(batch_size, num_inference_steps, guidance_scale, labels, generator, seed, output_type)
        if seed is not None:
            generator = [seeded_generator(SAMPLING, seed, index) for index in range(batch_size)]

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        sample = randn_tensor((batch_size, *self.image_shape), generator=generator, device=self._execution_device)
        sample = sample * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        step_options = {"generator": generator} if "generator" in accepted else {}
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            scaled = self.scheduler.scale_model_input(sample, timestep).to(self.unet.dtype)
            prediction = self._predict(scaled, timestep, labels, guidance_scale).float()
            sample = self.scheduler.step(prediction, timestep, sample, **step_options).prev_sample
            if callback_on_step_end is not None:
                sample = callback_on_step_end(self, step, timestep, {"sample": sample}).get("sample", sample)
        self.maybe_free_model_hooks()

        images = self._images(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def label_index(self, label: int | str) -> int:
        """Return the index of a class given by index or by name, capitals aside.

        Raises:
            ValueError: If the network has no classes, or not this one.
        """
        if self.num_classes is None:
            raise ValueError(f"class label {label!r} was asked of an unconditional network; leave the labels out")
        if not isinstance(label, (Integral, str)):
            raise ValueError(f"class label {label!r} is neither an index nor a name")
        names = {name.lower(): index for index, name in enumerate(self.config.class_names or ())}
        if isinstance(label, str) and not label.removeprefix("-").isdecimal():
            if label.lower() not in names:
                hint = did_you_mean(label, names)
                raise ValueError(f"unknown class '{label}'{hint}; known: {', '.join(self.config.class_names or ())}")
            return names[label.lower()]
        if not 0 <= int(label) < self.num_classes:
            raise ValueError(f"class label {label} is out of range; the labels are 0 to {self.num_classes - 1}")
        return int(label)

    def _label_tensor(self, labels: Labels | None, batch_size: int | None) -> Tensor | None:
        if labels is None:
            return None
        if isinstance(labels, (Tensor, np.ndarray)):
            labels = labels.tolist()
        if isinstance(labels, str) or not isinstance(labels, Sequence):
            labels = [labels] * (batch_size or 1)
        indices = [self.label_index(label) for label in labels]
        return torch.tensor(indices, device=self._execution_device)

    def _check(
        self,
        batch_size: int,
        num_inference_steps: int,
        guidance_scale: float,
        labels: Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        seed: int | None,
        output_type: str,
    ) -> None:
        check_positive(batch_size=batch_size)
        check_steps(num_inference_steps, self.scheduler)
        if labels is not None and len(labels) != batch_size:
            raise ValueError(f"{len(labels)} class labels for {batch_size} images; give one, or one for each image")
        if guidance_scale != 1 and labels is None:
            raise ValueError(f"guidance_scale is {guidance_scale} without class labels; give labels, or leave it at 1")
        if guidance_scale != 1 and not hasattr(self.unet, "null_label"):
            raise ValueError(
                f"guidance_scale is {guidance_scale}, and {type(self.unet).__name__} has no null label; leave it at 1"
            )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for {batch_size} images; give one, or one for each image")
        if seed is not None and generator is not None:
            raise ValueError("seed and generator were both given; give one of them")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is '{output_type}'; it is one of {', '.join(OUTPUT_TYPES)}")

    def _predict(self, sample: Tensor, timestep: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
        if labels is None:
            return self.unet(sample, timestep).sample
        if guidance_scale == 1:
            return self.unet(sample, timestep, class_labels=labels).sample
        both_labels = torch.cat([labels, torch.full_like(labels, self.unet.null_label)])
        both = self.unet(torch.cat([sample, sample]), timestep, class_labels=both_labels).sample
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _images(self, sample: Tensor, output_type: str) -> Any:
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = rearrange(images, "b c h w -> b h w c").cpu().numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)


def load_pipeline(folder: str | os.PathLike[str]) -> DenoisingPipeline:
    """Load a saved pipeline from a folder, with its progress bar off.

    Raises:
        FileNotFoundError: If the folder is not a saved pipeline.
        ValueError: If a part of it is missing or damaged.
    """
    if not (Path(folder) / DenoisingPipeline.config_name).is_file():
        raise FileNotFoundError(f"{folder} is not a saved pipeline: it has no {DenoisingPipeline.config_name}")
    try:
        pipeline = DenoisingPipeline.from_pretrained(folder, use_safetensors=True)
        pipeline.to("cpu")  # which fails if weights are missing
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded as a pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
