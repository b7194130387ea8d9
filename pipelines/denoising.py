"""`DenoisingPipeline`: from noise to images with any backbone and any diffusers scheduler."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from denoiser.checks import check_between, check_positive, pair
from denoiser.plain import plain, plain_arguments
from denoiser.randomness import SAMPLING, seeded_generator
from pipelines.callbacks import TENSOR_INPUTS, StepCallback, StepReport
from pipelines.classes import ClassReader, Labels, OwnLabels
from pipelines.guidance import Guidance
from pipelines.images import in_unit_range
from pipelines.predictor import Predictor, predicted_image
from pipelines.schedulers import distilled_calls
from pipelines.stepping import Stepper

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PICTURE_CHANNELS = (1, 3, 4)  # grey, colour, and colour with a mask
# Images in a call of the network where each image has its own randomness: kernels round differently by batch size.
CALL_SIZE = 64
# What diffusers and safetensors raise for files that are damaged, or that need what is not installed.
LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, SafetensorError)


class DenoisingPipeline(DiffusionPipeline):
    """Generates images with a noise-prediction network, with or without classes.

    Args:
        unet: `UNet`, `BasicUNet`, or another network with `UNet2DModel`'s call contract.
        scheduler: Any diffusers scheduler that takes the network's prediction type.
        class_names: Name of each class, by label; None if the classes have no names or there are none.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = TENSOR_INPUTS

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self._interrupt, self._num_timesteps, self._guidance_scale = False, 0, 1.0
        classes = unet.config.get("num_class_embeds")
        if classes is not None and class_names is not None and len(class_names) > classes:
            raise ValueError(f"{len(class_names)} class_names for a network of {classes} classes; name each once")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=None if class_names is None else list(class_names))

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the network, or None if it is unconditional."""
        return self.unet.config.get("num_class_embeds")

    @property
    def classes(self) -> ClassReader:
        """What reads the classes' names and indices."""
        return ClassReader(self.num_classes, self.config.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.unet.config.in_channels, *pair(self.unet.config.sample_size))

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps of the last call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Scale of guidance in the last step, which a callback changes for the next by setting `_guidance_scale`."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the rest of a call's steps is left out, as a callback asks for by setting `_interrupt`."""
        return self._interrupt

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Make a pipeline of the parts of another, as diffusers does, whatever class its network is of."""
        return super().from_pipe(pipeline, **{"unet": pipeline.unet, **kwargs})

    @plain_arguments
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        eta: float = 0.0,
        noise: Tensor | None = None,
        image: Tensor | None = None,
        strength: float = 1.0,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate a batch of images.

        Args:
            batch_size: Number of images; by default one for each label or each seed, or one.
            class_labels: A class for all images or one for each, by index or by name; None means no class. A mixture
                such as `{"sneaker": 2, "bag": 1}` has the predictions of its classes in these proportions.
            guidance_scale: Classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w): 1 is the plain
                conditional network; other scales need its prediction without a class too, in the same call.
            num_inference_steps: Steps of the scheduler, from 1 to its number of training timesteps; by default 50, or
                the calls that the network was distilled to draw in.
            generator: Source of all randomness. A list gives each image its own, and makes it the same to the last bit
                whatever else is drawn with it; the network is then called with `CALL_SIZE` images at a time.
            seed: In the place of such a list: image i is a function of (seed, i), or of (seeds[i], 0) for a seed each.
            output_type: "pil" for a list of PIL images, "np" for `(batch, height, width, channels)` in [0, 1], "pt"
                for `(batch, channels, height, width)` in [0, 1], "latent" for that as the last step leaves it, [-1, 1]
                and not clipped.
            return_dict: False for a plain tuple.
            callback_on_step_end: Called as `(pipeline, step, timestep, {"sample": noisy, "clean": image})` after each
                step, with the image predicted in it; both `(batch, channels, height, width)`. What it returns under
                "sample" replaces the noisy images; it may return None.
            guidance_rescale: Share, 0 to 1, of guidance's change of contrast that is taken back.
            guidance_interval: Lowest and highest noise level sigma at which guidance acts (`pipelines.Guidance`);
                None is everywhere.
            eta: For samplers that take it, as DDIM does: how much noise a step adds, from none at 0 to DDPM's at 1
                (Song et al. 2021, eq. 16).
            noise: Standard normal, to start from in the place of what the generator would draw; shaped as the batch.
            image: Images in [-1, 1], shaped as the batch, to change: noise is added, and the last of the steps take it
                away (Meng et al. 2022, SDEdit).
            strength: Share of the steps that then are taken, above 0: 1 is all, which leave nothing of the image.
            callback_on_step_end_tensor_inputs: Which tensors the callback is told: "sample" and "clean" by default, or
                "latents", diffusers' name for the sample. A few schedulers do not tell their noise levels; with those
                "clean" cannot be told.

        Returns:
            `ImagePipelineOutput` whose `images` are as `output_type` says.

        Raises:
            ValueError: If a count, a label, the output type or the combination of arguments is wrong, or the scheduler
                cannot take these steps.
            FloatingPointError: If the images are not finite after the last step.
        """
        if batch_size is None:
            batch_size = _length(class_labels, seed)
        guidance = Guidance(guidance_scale, guidance_rescale, guidance_interval)
        if callback_on_step_end is None:  # which may change the scale
            guidance.check_effect()
        if num_inference_steps is None:
            num_inference_steps = distilled_calls(self.scheduler.config) or 50
        check_positive(batch_size=batch_size)
        generator = list(generator) if isinstance(generator, tuple) else generator
        self._check_randomness(batch_size, generator, seed)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is '{output_type}'; it is one of {', '.join(OUTPUT_TYPES)}")
        if seed is not None:
            generator = image_generators(seed, range(batch_size))
        device = self._execution_device
        classes = (
            None if class_labels is None else self.classes.read(cast("OwnLabels", class_labels), batch_size).to(device)
        )
        call_size = CALL_SIZE if isinstance(generator, list) else None
        predict = Predictor(self.unet, self.scheduler, classes, guidance, call_size)
        report = StepReport(callback_on_step_end, callback_on_step_end_tensor_inputs)

        stepper = Stepper(self.scheduler, num_inference_steps, device, generator, eta)
        shape = (batch_size, *self.image_shape)
        noise = randn_tensor(shape, generator=generator, device=device) if noise is None else noise
        _check_noise(noise, shape)
        sample = self._start(stepper, noise.to(device), image, strength)
        self._interrupt, self._num_timesteps, self._guidance_scale = False, len(stepper.timesteps), guidance.scale
        for step, timestep in enumerate(self.progress_bar(stepper.timesteps)):
            if self.interrupt:
                continue
            if self.guidance_scale != predict.guidance.scale:
                predict.guide(replace(guidance, scale=plain(self.guidance_scale)))
            noisy = stepper.scaled(sample, timestep)
            prediction = predict(noisy, timestep)
            clean = None
            if "clean" in report.names:
                clean = predicted_image(self.scheduler, noisy, prediction, timestep)
            sample = report(self, step, timestep, stepper.step(prediction, timestep, sample), clean)
        self.maybe_free_model_hooks()
        stepper.check_finite(sample)

        images = self._images(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _start(self, stepper: Stepper, noise: Tensor, image: Tensor | None, strength: float) -> Tensor:
        """Return the noisy images before the first step."""
        if image is None:
            if strength != 1:
                raise ValueError(f"strength is {strength} without an image to change; give one, or leave it at 1")
            return stepper.from_noise(noise)
        if not isinstance(image, Tensor):
            raise ValueError(f"image is a {type(image).__name__}; give a tensor in [-1, 1], {tuple(noise.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}; give a tensor in [-1, 1]")
        if image.shape != noise.shape:
            raise ValueError(f"image is {tuple(image.shape)}; expected {tuple(noise.shape)}, as many and as large")
        check_between(0, 1, strength=strength)
        if not strength:
            raise ValueError(f"strength is {strength}; it must be above 0 and up to 1")
        taken = math.ceil(round(strength * stepper.num_inference_steps, 9))  # 0.7 of 10 is 7, not the 8 of rounding
        return stepper.from_image(image.to(noise.device), noise, taken)

    def _check_randomness(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        seed: int | Sequence[int] | None,
    ) -> None:
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators for {batch_size} images; give one, or one for each image")
        if isinstance(seed, Sequence) and len(seed) != batch_size:
            raise ValueError(f"{len(seed)} seeds for {batch_size} images; give one, or one for each image")
        if seed is not None and generator is not None:
            raise ValueError("seed and generator were both given; give one of them")

    def _images(self, sample: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return sample
        images = in_unit_range(sample)
        if output_type == "pt":
            return images
        if output_type == "pil" and images.shape[1] not in PICTURE_CHANNELS:
            raise ValueError(f"images of {images.shape[1]} channels are no pictures; give output_type np or pt")
        array = rearrange(images, "b c h w -> b h w c").cpu().numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)


def image_generators(seed: int | Sequence[int], indices: Sequence[int]) -> list[torch.Generator]:
    """Return the generator of each image: of one seed and its index, or of its own seed in the place of an index."""
    if isinstance(seed, Sequence):
        return [seeded_generator(SAMPLING, seed[index], 0) for index in indices]
    return [seeded_generator(SAMPLING, seed, index) for index in indices]


def _check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` if the noise to start from is no tensor of this shape."""
    if not isinstance(noise, Tensor):
        raise ValueError(f"noise is a {type(noise).__name__}; give a tensor, {shape}")
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}; expected {shape} (batch, channels, height, width)")


def _length(*given: object) -> int:
    """Return the length of the first argument that has a value for each image, or one."""
    return next((len(values) for values in given if isinstance(values, Sequence) and not isinstance(values, str)), 1)


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
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} cannot be loaded as a pipeline: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
