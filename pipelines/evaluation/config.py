"""Settings of an evaluation."""

from dataclasses import dataclass

from denoiser.checks import check_between, check_positive, did_you_mean
from pipelines import SamplingConfig
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET

SECTIONS = ("distances", "classes", "guidance", "likelihood", "memorisation", "samplers")
OF_DENOISERS = ("guidance", "likelihood", "samplers")  # need a network for every noise level
MOST_SWEPT = 10_000  # images of the test split, for the floor


@dataclass(frozen=True)
class EvaluationConfig(SamplingConfig):
    """Evaluation settings.

    Attributes:
        num_images: Images for each seed, 2,000 to 10,000.
        seeds: Number of sets of images, from `seed` on, for the spread.
        batch_size: Images in a batch.
        sections: Sections of the report: distances, classes, guidance, likelihood, memorisation and
            samplers; None for all that the pipeline or the images support.
        sweep_images: Images for each guidance scale and each row of the sampler table.
        likelihood_timesteps: Random timesteps for each test image.
    """

    num_images: int = 10_000
    seeds: int = 3
    batch_size: int = 250
    sections: list[str] | None = None
    sweep_images: int = 1_000
    likelihood_timesteps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(seeds=self.seeds, likelihood_timesteps=self.likelihood_timesteps)
        check_between(FEWEST_FOR_FRECHET, MOST_SWEPT, sweep_images=self.sweep_images)
        for name in self.sections or ():
            if name not in SECTIONS:
                raise ValueError(
                    f"unknown section '{name}'{did_you_mean(name, SECTIONS)}; known: {', '.join(SECTIONS)}"
                )

    def choose_sections(self, no_denoiser: str | None, has_labels: bool, can_be_guided: bool) -> list[str]:
        """Return the sections to make, in the report's order."""
        reasons = {
            **({} if no_denoiser is None else dict.fromkeys(OF_DENOISERS, no_denoiser)),
            **({} if has_labels else {"classes": "the images have no labels"}),
        }
        if no_denoiser is None and not can_be_guided:
            reasons["guidance"] = "the network has no classes, or no null label"
        for name in self.sections or ():
            if name in reasons:
                raise ValueError(f"the section '{name}' cannot be made: {reasons[name]}; leave it out")
        return [name for name in SECTIONS if name not in reasons and (self.sections is None or name in self.sections)]
