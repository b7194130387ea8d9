"""`DenoisingPipeline`: from noise to images with any backbone and any diffusers scheduler."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor

from denoiser.checks import check_between, check_positive, pair, plain, plain_arguments
from denoiser.randomness import SAMPLING, seeded_generator
from pipelines.classes import ClassReader, Labels, OwnLabels
from pipelines.images import in_unit_range
from pipelines.noise_levels import predicted_image
from pipelines.predictor import Guidance, Predictor
from pipelines.schedulers import build_scheduler
from pipelines.spacing import Spacing, check_spacing, check_timesteps, spaced_timesteps, takes_timesteps, used_spacing
from pipelines.stepping import Stepper, check_steps, distilled_calls

StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PICTURE_CHANNELS = (1, 3, 4)  # grey, colour, and colour with a mask
# The noisy images after a step, the predicted clean images, and diffusers' name for the former.
TENSOR_INPUTS = ("sample", "clean", "latents")
# Images in a network call where each image has its own generator: kernels round differently by batch size.
CALL_SIZE = 64


class DenoisingPipeline(DiffusionPipeline):
    """Generates images with a noise-prediction network, with or without classes.

    Args:
        unet: `UNet`, `BasicUNet`, or another network with `UNet2DModel`'s call contract.
        scheduler: Any diffusers scheduler that supports the network's prediction type.
        class_names: Name of each class, by label, or None.
        guide: A weaker network for autoguidance (Karras et al. 2024a), such as an earlier one of the same
            training, or None.
        autoguidance_scale: Scale of autoguidance where a call gives none; 1 is none.
        spacing: Spacing of the steps where a call gives none, "timesteps" or "log-snr" (`SPACINGS`); None
            is "timesteps".
    """

    model_cpu_offload_seq = "guide->unet"
    _optional_components = ["guide"]  # noqa: RUF012 - diffusers' own name and kind
    _callback_tensor_inputs = TENSOR_INPUTS

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        class_names: Sequence[str] | None = None,
        guide: ModelMixin | None = None,
        autoguidance_scale: float = 1.0,
        spacing: str | None = None,
    ) -> None:
        super().__init__()
        self._interrupt, self._num_timesteps, self._guidance_scale = False, 0, 1.0
        classes = unet.config.get("num_class_embeds")
        if classes is not None and class_names is not None and len(class_names) > classes:
            raise ValueError(f"{len(class_names)} class_names for a network of {classes} classes; name each once")
        _check_guide(unet, guide)
        check_spacing(spacing)
        self.register_modules(unet=unet, scheduler=scheduler, guide=guide)
        self.register_to_config(
            class_names=None if class_names is None else list(class_names),
            autoguidance_scale=autoguidance_scale,
            spacing=spacing,
        )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unconditional network."""
        return self.unet.config.get("num_class_embeds")

    @property
    def classes(self) -> ClassReader:
        """Reader of class names and indices."""
        return ClassReader(self.num_classes, self.config.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.unet.config.in_channels, *pair(self.unet.config.sample_size))

    @property
    def noise_schedule(self) -> DDPMScheduler:
        """Noise schedule that the network was trained with, whichever sampler `scheduler` is."""
        if isinstance(self.scheduler, DDPMScheduler):
            return self.scheduler
        return build_scheduler(DDPMScheduler, self.scheduler.config)

    @property
    def networks(self) -> list[ModelMixin]:
        """The network, and the guide if there is one."""
        return [self.unet] if self.guide is None else [self.unet, self.guide]

    @property
    def autoguidance_scale(self) -> float | None:
        """Scale of autoguidance where a call gives none, or None without a guide."""
        return None if self.guide is None else self.config.autoguidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps of the last call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the last step; a callback may set `_guidance_scale` for the next."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps of a call are skipped; a callback may set `_interrupt`."""
        return self._interrupt

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Make a pipeline from the components of another; any network class is accepted."""
        networks = {"unet": pipeline.unet, "guide": getattr(pipeline, "guide", None)}
        return super().from_pipe(pipeline, **{**networks, **kwargs})

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
        autoguidance_scale: float | None = None,
        autoguidance_interval: tuple[float, float] | None = None,
        spacing: Spacing | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate a batch of images.

        Args:
            batch_size: Number of images; by default one for each label or seed, or one.
            class_labels: A class for all images or one for each, by index or name, or a mixture such
                as `{"sneaker": 2, "bag": 1}`, whose predictions are averaged with these weights. None
                is no class.
            guidance_scale: Scale of classifier-free guidance (Ho & Salimans 2022, eq. 6, 1 + w): 1 is
                none; other scales double the size of the network calls.
            num_inference_steps: Steps of the scheduler, from 1 to its number of training timesteps; by
                default 50, or the calls that a student was distilled for.
            generator: Generator of all randomness. With a list of one for each image, an image is the
                same to the last bit in any batch; the network is called with `CALL_SIZE` images.
            seed: Makes such a list: image i depends on (seed, i), or on (seeds[i], 0) for a sequence.
            output_type: "pil" for PIL images; "np" for `(batch, height, width, channels)` or "pt" for
                `(batch, channels, height, width)` in [0, 1]; "latent" for the last step's tensor, in
                [-1, 1] and not clipped.
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: Called after each step with `(pipeline, step, timestep, tensors)`;
                a "sample" in the dict that it returns replaces the noisy images.
            guidance_rescale: Fraction of the contrast added by guidance that is removed, 0 to 1.
            guidance_interval: Lowest and highest noise level sigma with guidance (`Guidance`).
            eta: Noise of a DDIM step, from none at 0 to DDPM's at 1 (Song et al. 2021, eq. 16).
            noise: Standard normal noise to start from instead of the generator's, shaped as the batch.
            image: Images in [-1, 1] to change, shaped as the batch: noise is added, and the last steps
                remove it (SDEdit, Meng et al. 2022).
            strength: Fraction of the steps taken on `image`, above 0; 1 keeps nothing of it.
            callback_on_step_end_tensor_inputs: Tensors for the callback, "sample" and "clean" (the
                predicted image) by default, or "latents", diffusers' name for the sample. A few
                schedulers do not tell their noise levels and have no "clean".
            autoguidance_scale: Scale of autoguidance (Karras et al. 2024a, eq. 3): 1 is none; other scales
                call the guide as well. By default the pipeline's.
            autoguidance_interval: Lowest and highest noise level sigma with autoguidance.
            spacing: "timesteps" for the scheduler's own timesteps, "log-snr" for noise levels evenly spaced
                in log SNR (`spaced_timesteps`). By default the pipeline's, for schedulers that take
                timesteps, and without an `image`.
            timesteps: Timesteps of the steps, falling, instead of `num_inference_steps` and `spacing`.

        Returns:
            `ImagePipelineOutput` with `images` as `output_type` says.

        Raises:
            ValueError: If an argument is invalid, or the scheduler cannot take these steps.
            FloatingPointError: If the images are not finite after the last step.
        """
        if batch_size is None:
            batch_size = _length(class_labels, seed)
        guidance = Guidance(
            guidance_scale, guidance_rescale, guidance_interval, autoguidance_scale, autoguidance_interval
        ).with_own(self.autoguidance_scale)
        if callback_on_step_end is None:  # which may change the scale
            guidance.check_effect()
        check_positive(batch_size=batch_size)
        generator = _generator(batch_size, generator, seed)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is '{output_type}'; it is one of {', '.join(OUTPUT_TYPES)}")
        device, classes = self._execution_device, None
        if class_labels is not None:
            classes = self.classes.read(cast("OwnLabels", class_labels), batch_size).to(device)
        call_size = CALL_SIZE if isinstance(generator, list) else None
        predict = Predictor(self.unet, self.scheduler, classes, guidance, call_size, self.guide)
        tensor_names = _tensor_names(callback_on_step_end, callback_on_step_end_tensor_inputs)

        steps, timesteps = self._timesteps(num_inference_steps, timesteps, spacing, image)
        stepper = Stepper(self.scheduler, steps, device, generator, eta, timesteps)
        shape = (batch_size, *self.image_shape)
        noise = randn_tensor(shape, generator=generator, device=device) if noise is None else noise
        _check_noise(noise, shape)
        sample = _start(stepper, noise.to(device), image, strength)
        self._interrupt, self._num_timesteps, self._guidance_scale = False, len(stepper.timesteps), guidance.scale
        for step, timestep in enumerate(self.progress_bar(stepper.timesteps)):
            if self.interrupt:
                continue
            if self.guidance_scale != predict.guidance.scale:
                predict.set_guidance(replace(guidance, scale=plain(self.guidance_scale)))
            noisy = stepper.scaled(sample, timestep)
            prediction = predict(noisy, timestep)
            clean = predicted_image(self.scheduler, noisy, prediction, timestep) if "clean" in tensor_names else None
            sample = stepper.step(prediction, timestep, sample)
            if callback_on_step_end is not None:
                tensors: dict[str, Any] = {"sample": sample, "clean": clean, "latents": sample}
                told = {name: tensors[name] for name in tensor_names}
                sample = _answer(callback_on_step_end(self, step, timestep, told), sample)
        self.maybe_free_model_hooks()
        stepper.check_finite(sample)

        images = self._images(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _timesteps(
        self, steps: int | None, timesteps: Sequence[int] | None, spacing: Spacing | None, image: Tensor | None
    ) -> tuple[int, Sequence[int] | None]:
        """Return the number of steps, and their timesteps, or None for those that the scheduler chooses."""
        scheduler = self.scheduler
        if timesteps is not None:
            if spacing is not None or steps is not None:
                raise ValueError("timesteps were given, which replace num_inference_steps and spacing; leave those out")
            if not takes_timesteps(scheduler):
                raise ValueError(
                    f"timesteps were given, and {type(scheduler).__name__} chooses its own; leave them out"
                )
            check_timesteps(timesteps, scheduler.config.num_train_timesteps)
            return len(timesteps), timesteps
        if steps is None:
            steps = distilled_calls(scheduler.config) or 50
        check_spacing(spacing, scheduler)
        own = self.config.spacing if image is None else None  # of an image, strength is a share of the timesteps
        if used_spacing(spacing, own, scheduler) != "log-snr":
            return steps, None
        check_steps(steps, scheduler)
        return steps, spaced_timesteps(scheduler.alphas_cumprod, steps)

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
    """Return a generator for each image: of (seed, index), or of (seeds[index], 0) for a sequence."""
    if isinstance(seed, Sequence):
        return [seeded_generator(SAMPLING, seed[index], 0) for index in indices]
    return [seeded_generator(SAMPLING, seed, index) for index in indices]


def _start(stepper: Stepper, noise: Tensor, image: Tensor | None, strength: float) -> Tensor:
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


def _tensor_names(callback: StepCallback | None, names: Sequence[str] | None) -> Sequence[str]:
    """Return the names of the tensors that are passed to a callback; diffusers' own callbacks name theirs."""
    if callback is None:
        return ()
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        names = callback.tensor_inputs
    names = TENSOR_INPUTS[:2] if names is None else names
    if unknown := [name for name in names if name not in TENSOR_INPUTS]:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs has {unknown[0]!r}; the tensors are {', '.join(TENSOR_INPUTS)}"
        )
    return names


def _answer(answer: dict[str, Tensor] | None, sample: Tensor) -> Tensor:
    """Return the noisy images to continue with after a callback."""
    if answer is None:
        return sample
    if not isinstance(answer, dict):
        raise ValueError(f"callback_on_step_end returned a {type(answer).__name__}; it returns a dict, or None")
    given = (answer.get(name, sample) for name in ("sample", "latents"))
    return next((images for images in given if images is not sample), sample)


def _generator(
    batch_size: int, generator: torch.Generator | Sequence[torch.Generator] | None, seed: int | Sequence[int] | None
) -> torch.Generator | list[torch.Generator] | None:
    """Return the generator of a batch, or one for each image."""
    generator = list(generator) if isinstance(generator, Sequence) else generator
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"{len(generator)} generators for {batch_size} images; give one, or one for each image")
    if isinstance(seed, Sequence) and len(seed) != batch_size:
        raise ValueError(f"{len(seed)} seeds for {batch_size} images; give one, or one for each image")
    if seed is not None and generator is not None:
        raise ValueError("seed and generator were both given; give one of them")
    return generator if seed is None else image_generators(seed, range(batch_size))


def _check_guide(unet: ModelMixin, guide: ModelMixin | None) -> None:
    """Raise `ValueError` unless a guide takes the images and the classes of the network."""
    if guide is None:
        return
    own_inputs, other_inputs = _inputs(unet), _inputs(guide)
    for name, own in own_inputs.items():
        if own != (others := other_inputs[name]):
            raise ValueError(f"the guide has {name} {others}, and the network {own}; a guide has the same")


def _inputs(network: ModelMixin) -> dict[str, Any]:
    """Return the settings of a network that say which images and classes it takes."""
    size, names = network.config.get("sample_size"), ("in_channels", "out_channels", "num_class_embeds")
    return {"sample_size": size and pair(size), **{name: network.config.get(name) for name in names}}


def _check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(noise, Tensor):
        raise ValueError(f"noise is a {type(noise).__name__}; give a tensor, {shape}")
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}; expected {shape} (batch, channels, height, width)")


def _length(*given: object) -> int:
    """Return the length of the first argument with a value for each image, or one."""
    return next((len(values) for values in given if isinstance(values, Sequence) and not isinstance(values, str)), 1)
