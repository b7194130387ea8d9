"""Students that match the teacher's distribution in a few calls, by score identity distillation.

Score identity distillation (SiD: Zhou et al. 2024, ICML; few-step: Zhou et al. 2025) needs no target
images. The student maps a few noise levels directly to clean images. Its images are noised again and
given to two denoisers: the teacher, which was trained on the data, and a critic, which is trained on
the student's images. The student minimises the Fisher divergence between the two distributions: the
squared difference of their clean images.

The critic is conditioned on the student's call as a part of its label. Otherwise only the mixture of
all calls would be matched, and one call could be too dark where another is too bright.
"""

import torch
from accelerate.utils import DistributedType
from einops import rearrange
from torch import Tensor

from denoiser.randomness import DISTILLATION, seeded_generator
from denoiser.unet import UNet
from pipelines import DenoisingPipeline, make_scheduler
from pipelines.noise_levels import predicted_image
from pipelines.training.config import architecture
from pipelines.training.distillation import Student
from pipelines.training.loss import denoising_loss

# Timesteps at which student and teacher are compared, as fractions of all: below, the noise changes nothing;
# above, the clean image no longer follows from the predicted noise.
COMPARED = (0.02, 0.95)


def critic_of(unet: UNet, calls: int) -> UNet:
    """Return the critic: the teacher's network with a label for each class and call.

    Label `call * rows + label` is initialised with the teacher's `label`, of `rows` labels with the
    null label; or `call` alone without labels.
    """
    rows = 1 if unet.null_label is None else unet.null_label + 1
    critic = UNet.from_config({**architecture(unet)["init_args"], "num_class_embeds": calls * rows})
    table = torch.zeros_like(critic.label_embedding.table.weight)
    if unet.label_embedding is not None:
        table[:-1] = unet.label_embedding.table.weight.detach().repeat(calls, 1)
    critic.load_state_dict({**unet.state_dict(), "label_embedding.table.weight": table})
    return critic


class Distiller(Student):
    """Learner of the objective "sid". A call starts from a noisy training image, or from an own one."""

    def _set_up(self, teacher: DenoisingPipeline) -> None:
        """Choose the student's noise levels, and build its critic."""
        calls, accelerator = self.options.calls, self.accelerator
        if self.training.gradient_accumulation_steps != 1:
            raise ValueError("gradient_accumulation_steps must be 1 in a distillation; raise batch_size in its place")
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("FSDP splits one network, and a distillation trains two; use several_gpus.yaml")
        self.sampler = make_scheduler("lcm", {**self.noise_schedule.config, "original_inference_steps": calls})
        self.sampler.set_timesteps(calls, device=accelerator.device)
        self.starts = self.sampler.timesteps.clone()
        self.raw_critic = critic_of(teacher.unet, calls)
        self.critic = self._prepare(self.raw_critic)

    def _learn(self) -> Tensor:
        """Step with student and critic; returns the critic's loss, or at the start the student's own."""
        if self.step < self.options.denoising_steps:
            return super()._learn()
        ((part, images, class_labels),) = self._passes()
        # spread over the calls as the timesteps are over their range
        calls = part.timesteps * len(self.starts) // self.noise_schedule.config.num_train_timesteps
        starts = self.starts[calls]
        if self.options.own_starts:
            images = self._own_images(images, class_labels, calls)
        noisy = self.noise_schedule.add_noise(images, part.noise, starts)
        self._seed_network(self._start(0))
        prediction = self.model(noisy, starts, class_labels=class_labels).sample.float()
        generated = predicted_image(self.noise_schedule, noisy, prediction, starts)
        clean = generated.detach().clamp(-1, 1)  # as the sampler clips it
        critic_labels = self._critic_labels(class_labels, calls)
        gradient = self._divergence_gradient(clean, class_labels, critic_labels)
        self._step(self.model, self.optimizers[0], (generated * gradient).mean())
        self.critic.train()
        means = []
        for use in range(1, 1 + self.options.critic_steps):
            noise, timesteps = self._noise(use)
            losses = denoising_loss(self.critic, self.teacher_noise_schedule, clean, noise, timesteps, critic_labels)
            self._step(self.critic, self.optimizers[1], losses.mean())
            self.window.count(losses.detach(), timesteps)
            means.append(losses.detach().mean())
        return torch.stack(means).mean()

    @torch.no_grad()
    def _own_images(self, images: Tensor, class_labels: Tensor | None, calls: Tensor) -> Tensor:
        """Return the student's inputs at each image's call; at the first call, the image itself."""
        generated, before = images, images
        self.model.eval()
        for call, start in enumerate(self.starts[:-1]):
            noise, _ = self._noise(1 + self.options.critic_steps + call)
            noisy = self.noise_schedule.add_noise(generated, noise, start.expand(len(images)))
            prediction = self.model(noisy, start, class_labels=class_labels).sample.float()
            generated = predicted_image(self.noise_schedule, noisy, prediction, start).clamp(-1, 1)
            before = torch.where(rearrange(calls == call + 1, "b -> b 1 1 1"), generated, before)
        self.model.train()
        return before

    def _critic_labels(self, class_labels: Tensor | None, calls: Tensor) -> Tensor:
        """Return the critic's labels, of class and call."""
        if class_labels is None or self.num_classes is None:
            return calls
        return calls * (self.num_classes + 1) + class_labels

    def _divergence_gradient(self, clean: Tensor, class_labels: Tensor | None, critic_labels: Tensor) -> Tensor:
        """Return the gradient of SiD's loss, with alpha 1, with respect to the generated images.

        It goes through both denoisers. The loss of each image is scaled by the teacher's error.
        """
        noise_schedule = self.teacher_noise_schedule
        noise, timesteps = self._noise(0)
        clean = clean.clone().requires_grad_()
        noisy = noise_schedule.add_noise(clean, noise, timesteps)
        self.raw_critic.eval()
        with self.accelerator.autocast():
            predictions = [
                network(noisy, timesteps, class_labels=labels).sample.float()
                for network, labels in ((self.raw_critic, critic_labels), (self.teacher, class_labels))
            ]
        ours, theirs = (predicted_image(noise_schedule, noisy, prediction, timesteps) for prediction in predictions)
        gap, scale = theirs - ours, (clean - theirs).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
        losses = gap * (ours - clean) / scale.clamp(min=1e-3)
        (gradient,) = torch.autograd.grad(losses.sum(), clean)
        return gradient

    def _noise(self, use: int) -> tuple[Tensor, Tensor]:
        """Return this process's noise and timesteps for generated images."""
        length, count = self.training.batch_size, self.noise_schedule.config.num_train_timesteps
        whole = length * self.accelerator.num_processes
        generator = seeded_generator(DISTILLATION, self.training.seed, self.step, use)
        low, high = (round(share * count) for share in COMPARED)
        timesteps = torch.randint(low, high, (whole,), generator=generator)
        noise = torch.randn(whole, *self.image_shape, generator=generator)
        rows, device = slice(self._start(0), self._start(0) + length), self.accelerator.device
        return noise[rows].to(device), timesteps[rows].to(device)
