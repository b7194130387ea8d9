"""Students that take several steps of the teacher's ODE at once, by regression."""

from itertools import pairwise

import torch
from torch import Tensor

from denoiser.data import RandomBatch
from pipelines import DenoisingPipeline, make_scheduler
from pipelines.noise_levels import noise_level, predicted_image
from pipelines.spacing import spaced_timesteps
from pipelines.stepping import STUDENT_CALLS, Stepper, calls_of_student, student_timesteps
from pipelines.training.distillation import Student
from pipelines.training.loss import squared_errors

TRAJECTORY_STEPS = 12  # of the teacher, about


class TrajectoryStudent(Student):
    """Learner of the objective "trajectories".

    For each number of calls, the student's calls divide the trajectory of the teacher's ODE from noise to
    an image. A call starts from the trajectory, and its target is the velocity with which one step of DDIM
    comes to where the next call starts, or to the image (Salimans & Ho 2022, appendix G; several steps at
    once instead of two).
    """

    def _set_up(self, teacher: DenoisingPipeline) -> None:
        """Choose the timesteps of the student's calls and of the teacher's trajectories."""
        schedule, calls = self.noise_schedule, self.options.calls
        if self.training.loss_weighting != "prediction":
            raise ValueError("training.loss_weighting is min_snr, of the losses of denoisers; leave it out")
        self.sampler = make_scheduler("ddim", {**schedule.config, STUDENT_CALLS: calls})
        count = schedule.config.num_train_timesteps
        self.calls = [student_timesteps(count, fewer) for fewer in calls_of_student(calls)]
        timesteps = [timestep for own in self.calls for timestep in own]
        if len(set(timesteps)) < len(timesteps):
            raise ValueError(f"num_train_timesteps is {count}, too few to tell calls apart; 100 are enough")
        self.solver = make_scheduler("dpmsolver++", self.teacher_noise_schedule.config)
        points = {timestep for own in self.calls for timestep in own[1:]}
        self.timesteps = _between(schedule.alphas_cumprod, points)
        if beyond := sorted(points.difference(self.timesteps)):
            raise ValueError(
                f"a call would start at timestep {beyond[-1]}, beyond the teacher's trajectories, from timestep "
                f"{self.timesteps[0]} to {self.timesteps[-1]}; give fewer distillation.calls, or another objective"
            )

    def _losses(self, part: RandomBatch, images: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean squared errors of a pass, of each call from each image's noise, and their timesteps."""
        if self.step < self.options.denoising_steps:
            inputs, timesteps = self.noise_schedule.add_noise(images, part.noise, part.timesteps), part.timesteps
            targets = self._velocities(inputs, timesteps, class_labels)
        else:
            inputs, timesteps, targets = self._calls(part.noise, class_labels)
        repeats = len(timesteps) // len(images)
        labels = None if class_labels is None else class_labels.repeat(repeats)
        prediction = self.model(inputs, timesteps, class_labels=labels).sample
        return squared_errors(prediction, targets), timesteps

    @torch.no_grad()
    def _velocities(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return the velocities that follow from the teacher's clean images; those of the data would lose the guide."""
        with self.accelerator.autocast():
            prediction = self.teacher(noisy, timesteps, class_labels=class_labels).sample.float()
        clean = predicted_image(self.teacher_noise_schedule, noisy, prediction, timesteps).clamp(-1, 1)
        return self._velocity(noisy, timesteps, clean)

    def _velocity(self, noisy: Tensor, timesteps: Tensor, clean: Tensor) -> Tensor:
        """Return the velocities with which noisy images point to clean ones."""
        signal, deviation = noise_level(self.noise_schedule, timesteps)
        return (signal * noisy - clean) / deviation

    def _calls(self, noise: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs, timesteps and target velocities of all calls on the trajectories from noise."""
        points = self._trajectory(noise, class_labels)
        starts, cleans = [], []
        for own in self.calls:
            inputs = [noise, *(points[timestep] for timestep in own[1:])]
            starts += inputs
            cleans += [self._pointed_to(*ends) for ends in zip(pairwise(own), pairwise(inputs), strict=True)]
            cleans.append(points[None])
        every = torch.tensor([timestep for own in self.calls for timestep in own], device=noise.device)
        noisy, timesteps = torch.cat(starts), every.repeat_interleave(len(noise))
        return noisy, timesteps, self._velocity(noisy, timesteps, torch.cat(cleans))

    def _pointed_to(self, timesteps: tuple[int, int], noisy: tuple[Tensor, Tensor]) -> Tensor:
        """Return the clean image with which a step of DDIM leads from noisy images to later ones."""
        (signal, deviation), (next_signal, next_deviation) = (
            noise_level(self.noise_schedule, torch.tensor(timestep, device=noisy[0].device)) for timestep in timesteps
        )
        rest = next_deviation / deviation  # of the input
        return (noisy[1] - rest * noisy[0]) / (next_signal - rest * signal)

    @torch.no_grad()
    def _trajectory(self, noise: Tensor, class_labels: Tensor | None) -> dict[int | None, Tensor]:
        """Return the teacher's noisy images by timestep, and its images at None."""
        stepper = Stepper(self.solver, len(self.timesteps), noise.device, timesteps=self.timesteps)
        sample, points = stepper.from_noise(noise), dict[int | None, Tensor]()
        for timestep in stepper.timesteps:
            points[int(timestep)] = sample
            with self.accelerator.autocast():
                prediction = self.teacher(sample, timestep.expand(len(noise)), class_labels=class_labels).sample
            sample = stepper.step(prediction.float(), timestep, sample)
        points[None] = sample.clamp(-1, 1)
        return points


def _between(alphas_cumprod: Tensor, points: set[int]) -> list[int]:
    """Return timesteps with the `points` in their range among them, about even in log SNR, noisiest first."""
    log_snr = alphas_cumprod.double().logit()
    highest, *_, lowest = spaced_timesteps(alphas_cumprod, TRAJECTORY_STEPS)
    length = float(log_snr[lowest] - log_snr[highest]) / TRAJECTORY_STEPS
    ends = [highest, *sorted((point for point in points if lowest < point < highest), reverse=True), lowest]
    timesteps = []
    for start, end in pairwise(ends):
        steps = max(1, round(float(log_snr[end] - log_snr[start]) / length))
        levels = torch.linspace(float(log_snr[start]), float(log_snr[end]), steps + 1, dtype=torch.double)
        timesteps += [start, *((log_snr - level).abs().argmin().item() for level in levels[1:-1])]
    return [*timesteps, lowest]
