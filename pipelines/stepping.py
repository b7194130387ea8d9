"""Steps of diffusers' schedulers: the sampling loop's side of any scheduler class."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import LCMScheduler, PNDMScheduler, SchedulerMixin, UnCLIPScheduler
from torch import Tensor

from denoiser.checks import check_between
from pipelines.noise_levels import has_training_timesteps, noise_level, prediction_type

STUDENT_CALLS = "_student_calls"  # name in a scheduler's config; diffusers hands such names to no constructor
_GIVEN = {"self", "model_output", "timestep", "sample"}  # what every denoising loop hands to `step`

# Stochastic samplers, by name: some are missing in older versions or need further packages.
_STOCHASTIC = {
    *("CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler", "LCMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "LTXEulerAncestralRFScheduler", "SASolverScheduler", "UnCLIPScheduler"),
}


def check_steps(num_inference_steps: int, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` unless the scheduler can take this number of steps."""
    fewest, most = _fewest(scheduler), distilled_calls(scheduler.config) or scheduler.config.num_train_timesteps
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ValueError(f"num_inference_steps is {num_inference_steps!r}; it must be a whole number")
    if calls := scheduler.config.get(STUDENT_CALLS):
        _check_student_steps(num_inference_steps, calls, scheduler)
    if not fewest <= num_inference_steps <= most:
        raise ValueError(
            f"{num_inference_steps} inference steps were asked for; the sampler takes {fewest} to {most} "
            f"({type(scheduler).__name__})"
        )
    if not _spaced(num_inference_steps, scheduler):
        nearest = [
            next((str(steps) for steps in way if _spaced(steps, scheduler)), "")
            for way in (range(num_inference_steps, 0, -1), range(num_inference_steps, most + 1))
        ]
        raise ValueError(
            f"{num_inference_steps} inference steps were asked for, which diffusers rounds to one more, at timestep -1;"
            f" take {' or '.join(filter(None, nearest))}"
        )


def _check_student_steps(steps: int, calls: int, scheduler: SchedulerMixin) -> None:
    if (name := type(scheduler).__name__) != "StudentScheduler":
        raise ValueError(f"{name} has not the timesteps of a student; make its sampler with make_scheduler('ddim', …)")
    if steps not in (known := calls_of_student(calls)):
        told = ", ".join(map(str, known))
        raise ValueError(f"{steps} inference steps were asked for; the student samples in {told}")


def _fewest(scheduler: SchedulerMixin) -> int:
    """Return the smallest number of steps that a scheduler supports."""
    if isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps:
        return scheduler.pndm_order  # the Runge-Kutta steps at its start
    return 2 if isinstance(scheduler, UnCLIPScheduler) else 1


def _spaced(num_inference_steps: int, scheduler: SchedulerMixin) -> bool:
    """Return whether diffusers' `np.arange(count, 0, -count / steps)` has as many entries as steps."""
    if scheduler.config.get("timestep_spacing") != "trailing" or isinstance(scheduler, LCMScheduler):
        return True
    count = scheduler.config.num_train_timesteps
    return math.ceil(count / (count / num_inference_steps)) == num_inference_steps


def equal_stride(num_inference_steps: int, scheduler: SchedulerMixin) -> int:
    """Return the training timesteps in a step, or raise `ValueError` unless all steps are equal."""
    check_steps(num_inference_steps, scheduler)
    count = scheduler.config.num_train_timesteps
    if count % num_inference_steps:
        fitting = [steps for steps in range(1, count + 1) if count % steps == 0]
        nearest = min(fitting, key=lambda steps: abs(steps - num_inference_steps))
        raise ValueError(
            f"steps is {num_inference_steps}; it must divide the {count} training timesteps, as {nearest} does"
        )
    return count // num_inference_steps


def distilled_calls(config: Mapping[str, Any]) -> int | None:
    """Return the number of network calls that a student was distilled for; None for other networks."""
    calls = config.get(STUDENT_CALLS) or config.get("original_inference_steps")  # LCM's
    return calls if calls and calls < config["num_train_timesteps"] else None


def calls_of_student(calls: int) -> list[int]:
    """Return the numbers of calls in which a student of trajectories samples: `calls` and its halves, rounded down."""
    return [calls >> halvings for halvings in range(calls.bit_length())]


def student_timesteps(num_train_timesteps: int, calls: int) -> list[int]:
    """Return the timesteps of a student's calls, even in timesteps.

    They end a hundredth of the noise schedule lower for each further call. So no two numbers of calls
    share a timestep, by which the network knows how far the next one is.
    """
    count = num_train_timesteps - (calls - 1) * round(num_train_timesteps / 100)
    return [count * (calls - call) // calls - 1 for call in range(calls)]


def sampler_of_student(config: Mapping[str, Any]) -> str:
    """Return the name of the sampler of a student, whose scheduler has this config."""
    return "ddim" if STUDENT_CALLS in config else "lcm"


def accepted_by_step(scheduler: SchedulerMixin, **options: Any) -> dict[str, Any]:
    """Return the options that the scheduler's `step` takes."""
    known = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in known}


def check_eta(eta: float, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` if `eta` is out of range, or above 0 for a scheduler that takes none."""
    if eta and STUDENT_CALLS in scheduler.config:
        raise ValueError(f"eta is {eta}, and the steps of a student take none; leave it at 0")
    if eta and "eta" not in accepted_by_step(scheduler, eta=eta):
        raise ValueError(f"eta is {eta}, and {type(scheduler).__name__} takes none; use ddim, or leave it at 0")
    check_between(0, 1, eta=eta)


def adds_noise(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler adds noise in its steps."""
    names = {each.__name__ for each in type(scheduler).__mro__}
    return bool(names & _STOCHASTIC) or scheduler.config.get("algorithm_type", "").startswith("sde")


class Stepper:
    """Takes the steps of a diffusers scheduler of any class, or raises `ValueError` with its name.

    The scheduler chooses the timesteps if none are given. `timesteps` are those of the network calls,
    noisiest first; `from_image` drops the first ones.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        self.scheduler, self.name = scheduler, type(scheduler).__name__
        self._check_loop()
        check_steps(num_inference_steps, scheduler)
        self.options = self._step_options(generator, eta)
        with self._named("set its timesteps"):
            if timesteps is None:
                scheduler.set_timesteps(num_inference_steps, device=device)
            else:
                scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        self.num_inference_steps, self.timesteps = num_inference_steps, scheduler.timesteps
        self._check_timesteps()
        if hasattr(scheduler, "noise_sampler_seed"):  # the one way to hand randomness to DPMSolverSDEScheduler
            scheduler.noise_sampler_seed = _seeds(generator) or scheduler.config.noise_sampler_seed
        self._taken = 0
        self._finite = torch.zeros((), dtype=torch.long, device=device)  # steps, counted without waiting for the device

    def from_noise(self, noise: Tensor) -> Tensor:
        """Scale standard normal noise, `(batch, channels, height, width)`, to the first timestep."""
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def from_image(self, image: Tensor, noise: Tensor, taken: int) -> Tensor:
        """Add noise to images for the last `taken` steps, and drop the steps before."""
        scheduler, order = self.scheduler, getattr(self.scheduler, "order", 1)
        skipped = (self.num_inference_steps - taken) * order
        if skipped and len(self.timesteps) > self.num_inference_steps * order:
            raise ValueError(
                f"{self.name} takes its first steps in another way, and cannot leave some of them out; set strength to "
                "1, or choose another scheduler"
            )
        if hasattr(scheduler, "set_begin_index"):  # DDPM and DDIM go by the timestep alone
            scheduler.set_begin_index(skipped)
        self.timesteps = self.timesteps[skipped:]
        timesteps = self.timesteps[:1].expand(len(noise))
        if not hasattr(scheduler, "add_noise"):
            image_factor, noise_factor = noise_level(scheduler, timesteps)
            return image_factor * image + noise_factor * noise
        with self._named("add noise to images"):
            return scheduler.add_noise(image, noise, timesteps)

    def scaled(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Scale noisy images to the network's input."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return sample
        with self._named("scale the noisy images"):
            return self.scheduler.scale_model_input(sample, timestep)

    def step(self, prediction: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """Return the images after one step from `sample`, all shaped alike."""
        self._taken += 1
        if "prev_timestep" in self.options:  # UnCLIPScheduler's steps are of one timestep unless it is told
            self.options["prev_timestep"] = next(iter(self.timesteps[self._taken : self._taken + 1]), None)
        with self._named(f"take step {self._taken} of {len(self.timesteps)}"):
            sample = self.scheduler.step(prediction, timestep, sample, **self.options).prev_sample
        self._finite += (self._finite == self._taken - 1) & sample.isfinite().all()
        return sample

    def check_finite(self, sample: Tensor) -> None:
        """Raise `FloatingPointError`, with the first step at fault, if images are not finite."""
        if sample.isfinite().all():
            return
        raise FloatingPointError(
            f"the images of {self.name} are not finite from step {int(self._finite) + 1} of {len(self.timesteps)} on; "
            f"see that the network predicts {prediction_type(self.scheduler)} and that its weights are finite, sample "
            "in float32, and use v_prediction where the noise schedule ends in pure noise (rescale_betas_zero_snr)"
        )

    def _check_loop(self) -> None:
        """Raise `ValueError` unless a plain loop over timesteps can sample with this class."""
        parameters = inspect.signature(getattr(self.scheduler, "step", lambda: None)).parameters.values()
        needs = {parameter.name for parameter in parameters if parameter.default is parameter.empty} - _GIVEN
        if "num_train_timesteps" not in getattr(self.scheduler, "config", ()):  # stand-ins have no config at all
            reason = "its config has no num_train_timesteps, so that it is for another kind of network"
        elif not hasattr(self.scheduler, "step"):
            reason = "it has no method step"
        elif "Inverse" in self.name:
            reason = "it leads images to noise"
        elif needs:
            reason = f"its steps need {' and '.join(sorted(needs))} as well"
        else:
            return
        raise ValueError(f"{self.name} cannot sample with this network: {reason}; choose another scheduler")

    def _check_timesteps(self) -> None:
        first, last = float(self.timesteps[0]), float(self.timesteps[-1])
        if first < last:
            raise ValueError(
                f"{self.name} leads images to noise, its timesteps rising from {first:g} to {last:g}; choose another "
                "scheduler"
            )
        most = len(self.scheduler.alphas_cumprod) - 1 if has_training_timesteps(self.scheduler) else None
        if most is not None and not (self.timesteps.min() >= 0 and self.timesteps.max() <= most):
            raise ValueError(
                f"{self.name} has timesteps from {first:g} to {last:g} in {self.num_inference_steps} steps, and the "
                f"training had 0 to {most}; take other steps, or a steps_offset of 0"
            )

    def _step_options(self, generator: torch.Generator | list[torch.Generator] | None, eta: float) -> dict[str, Any]:
        check_eta(eta, self.scheduler)
        return accepted_by_step(self.scheduler, generator=generator, eta=eta, prev_timestep=None)

    @contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Turn any error of the scheduler into a `ValueError` that names it."""
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            if not isinstance(error, (ValueError, NotImplementedError, ImportError)):
                reason = f"it may want more than a loop over its timesteps ({type(error).__name__}: {reason})"
            raise ValueError(f"{self.name} cannot {doing}: {reason}") from error


def _seeds(generator: torch.Generator | list[torch.Generator] | None) -> int | list[int] | None:
    """Return a seed of each generator."""
    if generator is None:
        return None
    if isinstance(generator, list):
        return [_seed(each) for each in generator]
    return _seed(generator)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
