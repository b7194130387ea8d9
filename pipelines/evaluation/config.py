"""Settings of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from denoiser.checks import check_between, check_positive, did_you_mean
from pipelines import SamplingConfig
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET, MIN_IMAGES

SECTIONS = ("distances", "classes", "usefulness", "guidance", "likelihood", "memorisation", "samplers", "inception")
OF_LABELLED = ("classes", "usefulness")  # need images with labels
OF_DENOISERS = ("guidance", "likelihood", "samplers")  # need a network for every noise level
BY_DEFAULT = SECTIONS[:-1]  # Inception takes hours on a CPU
MOST_SWEPT = 10_000  # images of the test split, for the floor
FEWEST_FOR_MEMORISATION = 1_000  # samples, however few images are held out


@dataclass(frozen=True)
class EvaluationConfig(SamplingConfig):
    """Evaluation settings.

    Attributes:
        num_images: Images for each seed: for distances 2,000 to 10,000, or fewer where fewer are held out.
        seeds: Number of sets of images, from `seed` on, for the spread.
        batch_size: Images in a batch.
        sections: Sections of the report: distances, classes, usefulness, guidance, likelihood, memorisation,
            samplers and inception; None for all that the pipeline, the images and the set support, `inception`
            only if `inception_weights` are given.
        sweep_images: Images for each guidance scale and each row of the sampler table.
        likelihood_timesteps: Random timesteps for each held-out image.
        inception_weights: File of Inception's weights; None for the one in PyTorch's hub cache.
    """

    num_images: int = 10_000
    seeds: int = 3
    batch_size: int = 250
    sections: list[str] | None = None
    sweep_images: int = 1_000
    likelihood_timesteps: int = 20
    inception_weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(seeds=self.seeds, likelihood_timesteps=self.likelihood_timesteps)
        check_between(FEWEST_FOR_FRECHET, MOST_SWEPT, sweep_images=self.sweep_images)
        for name in self.sections or ():
            if name not in SECTIONS:
                raise ValueError(
                    f"unknown section '{name}'{did_you_mean(name, SECTIONS)}; known: {', '.join(SECTIONS)}"
                )

    def choose_sections(self, reasons: Mapping[str, str]) -> list[str]:
        """Return the sections to make, in the report's order, without those that there are reasons against."""
        for name in self.sections or ():
            if name in reasons:
                raise ValueError(f"the section '{name}' cannot be made: {reasons[name]}; leave it out")
        wanted = self.sections or (SECTIONS if self.inception_weights else BY_DEFAULT)
        return [name for name in SECTIONS if name not in reasons and name in wanted]

    def shrunk(self, held_out: int) -> "EvaluationConfig":
        """Return the settings with as many images as a set with few held-out images can use."""
        num_images, few = self.num_images, held_out < MIN_IMAGES and "distances" in (self.sections or BY_DEFAULT)
        if held_out < num_images and (few or num_images == EvaluationConfig.num_images):
            num_images = min(num_images, max(held_out, FEWEST_FOR_MEMORISATION))
        sweep_images = min(self.sweep_images, max(held_out, FEWEST_FOR_FRECHET))
        return replace(self, num_images=num_images, sweep_images=sweep_images)


def reasons_of_pipeline(distilled: bool, has_classes: bool, can_be_guided: bool) -> dict[str, str]:
    """Return why sections cannot be made of a pipeline's samples, by section."""
    reasons = {} if has_classes else dict.fromkeys(OF_LABELLED, "the images have no labels")
    if distilled:
        return reasons | dict.fromkeys(OF_DENOISERS, "the network is distilled, for a few noise levels only")
    return reasons if can_be_guided else {**reasons, "guidance": "the network has no classes, or no null label"}


def reasons_of_images(has_labels: bool) -> dict[str, str]:
    """Return why sections cannot be made of given images, by section."""
    reasons = dict.fromkeys(OF_DENOISERS, "images were given, and it needs a pipeline")
    return reasons if has_labels else reasons | dict.fromkeys(OF_LABELLED, "the images have no labels")


def reasons_of_set(train: int, held_out: int, has_judges: bool) -> dict[str, str]:
    """Return why sections cannot be made with a set of so many images, by section."""
    reasons = {}
    if not has_judges:
        reasons["classes"] = "the set has no classifiers yet; train them with scripts/train_judge.py"
    for count, what, advice in (
        (held_out, "held out", "; a larger data.held_out gives them"),
        (train, "to train on", ""),
    ):
        if count < FEWEST_FOR_FRECHET:
            few = f"the set has {count} images {what}, and a distance needs {FEWEST_FOR_FRECHET}{advice}"
            reasons |= dict.fromkeys((*OF_LABELLED, "distances", "guidance", "samplers", "inception"), few)
    if held_out < 2:
        reasons["likelihood"] = f"the set has {held_out} images held out, and the likelihood needs 2"
    if train < 2:
        reasons["memorisation"] = "the set has one training image"
    return reasons


def notes_on(sections: Sequence[str], left_out: Mapping[str, str], num_images: int, count: int) -> list[str]:
    """Return what a report cannot have, each in a sentence without its full stop.

    Args:
        sections: Sections that are made.
        left_out: Why others are not, by section.
        num_images: Images in a set of samples.
        count: Images that a distance can be of.
    """
    notes = []
    if "distances" in sections and count < num_images:
        notes.append(f"The distances are of {count:,} images a set, as many as are held out")
    if "distances" in sections and min(count, num_images) < MIN_IMAGES:
        notes.append(f"Left out: the kernel distance, which needs {MIN_IMAGES:,} images")
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, other in left_out.items() if other == reason and name in BY_DEFAULT)
        notes.append(f"Left out: {names}; {reason}")
    return notes
