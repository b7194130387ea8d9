"""Evaluate a trained pipeline, or images: python scripts/evaluate.py --pipeline runs/fashion_mnist/pipeline."""

import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from denoiser.data import DataConfig, ImageSet
from denoiser.device import in_best_layout, must_use_cpu
from denoiser.processes import optional, start_process, tell
from pipelines import PRETRAINED, DenoisingPipeline, find_pipeline, make_scheduler
from pipelines.commands.inputs import FEWEST_OF_A_CLASS, load_images
from pipelines.commands.parser import Parser, add_sampling_arguments, check_unused, command, needed, sampling_config
from pipelines.commands.sets import data_of_run, load_set
from pipelines.evaluation.comparison import check_count
from pipelines.evaluation.config import (
    EvaluationConfig,
    notes_on,
    reasons_of_images,
    reasons_of_pipeline,
    reasons_of_set,
)
from pipelines.evaluation.inception import SMALLEST, Inception, default_weights, why_not
from pipelines.evaluation.judge import find_judges
from pipelines.evaluation.markdown import render
from pipelines.evaluation.report import Reporter, check_report_folder, make_report, write_report
from pipelines.evaluation.samples import SampleGenerator, Samples
from pipelines.sampling import default_sampler
from pipelines.spacing import used_spacing
from pipelines.stepping import distilled_calls

with needed("eval"):
    from pipelines.evaluation.plots import plot_report
from pipelines.training.card import update_card

UNUSED_WITH_IMAGES = [
    each.name for each in fields(EvaluationConfig) if each.name not in ("seed", "sections", "inception_weights")
]


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument(
        "--pipeline", type=str | None, help="folder of a pipeline, teacher, guided, student, or user/name of the Hub"
    )
    parser.add_argument("--images", type=str | None, help="folder of PNG files, or an .npz file, instead of a pipeline")
    parser.add_argument(
        "--output_dir",
        type=str | None,
        help="folder of the report (default: beside what is evaluated, or runs/teacher, runs/user/name)",
    )
    parser.add_class_arguments(DataConfig, "data")
    add_sampling_arguments(parser, EvaluationConfig)
    return parser


def parse(arguments: Sequence[str]) -> Any:
    """Return the options; those of the set default to those of the pipeline's run."""
    parser = build_parser()
    pipeline = parser.parse_args(arguments).pipeline
    if pipeline is not None:
        parser.set_defaults(data_of_run(pipeline))
    return parser.instantiate(parser.parse_args(arguments))


def from_images(path: Path, train: ImageSet, test: ImageSet | None) -> tuple[Samples, dict[str, str]]:
    """Return images as samples, and the reasons against sections."""
    channels, height, width = train.images.shape[1:]
    count = len(train.class_names)
    fewest = 0 if test is None or test.labels is None else int(torch.bincount(test.labels, minlength=count).min())
    fewest = max(1, min(FEWEST_OF_A_CLASS, fewest))
    images, labels = load_images(path, (channels, height, width), count, fewest)
    return Samples([images], labels if count else None), reasons_of_images(bool(count) and labels is not None)


def from_pipeline(
    pipeline: DenoisingPipeline,
    config: EvaluationConfig,
    sections: Sequence[str],
    images: ImageSet,
    device: torch.device,
) -> tuple[SampleGenerator, dict[str, Any]]:
    """Return the sample generator of a pipeline, and the report's facts about it."""
    pipeline.to(device)
    for network in pipeline.networks:
        in_best_layout(network)
    subject = {
        "network": f"{type(pipeline.unet).__name__}, {pipeline.unet.num_parameters():,} parameters",
        "sampler": f"{config.scheduler}, {config.steps} steps, guidance scale {config.guidance_scale:g}",
    }
    sampler = make_scheduler(config.scheduler, pipeline.scheduler.config)
    if used_spacing(config.spacing, pipeline.config.spacing, sampler) == "log-snr":
        subject["sampler"] += ", even in log SNR"
    if pipeline.guide is not None:
        subject["sampler"] += (
            f", autoguidance scale {config.guidance.with_own(pipeline.autoguidance_scale).auto_scale:g}"
        )
    return SampleGenerator(pipeline, config, sections, images.to(device)), subject


def reasons_against(pipeline: DenoisingPipeline) -> dict[str, str]:
    """Return why sections cannot be made of a pipeline's samples, by section."""
    conditional = pipeline.num_classes is not None
    distilled = bool(distilled_calls(pipeline.scheduler.config))
    return reasons_of_pipeline(distilled, conditional, conditional and hasattr(pipeline.unet, "null_label"))


def open_inception(config: EvaluationConfig, train: ImageSet, device: torch.device) -> Inception:
    """Return Inception; `ValueError` without its weights, or for images that it cannot measure."""
    weights = default_weights() if config.inception_weights is None else Path(config.inception_weights)
    channels, *size = train.images.shape[1:]
    if (reason := why_not(weights, channels)) is not None:
        raise ValueError(f"the section 'inception' cannot be made: {reason}; or leave it out")
    if min(size) < SMALLEST:
        tell([f"of images under {SMALLEST} pixels a side, Inception sees nearly nothing but their enlargement"])
    with needed("fid"):
        return Inception(weights, device)


def folder_of_report(options: Any) -> Path:
    """Return the given folder, or the one beside what is evaluated, or runs/teacher for a pipeline by name."""
    if options.output_dir:
        return Path(options.output_dir)
    judged = Path(options.pipeline or options.images)
    named = options.pipeline in PRETRAINED or not judged.exists()
    return Path("runs") / judged if named else judged.absolute().parent


def read_settings(options: Any) -> tuple[DenoisingPipeline | None, EvaluationConfig]:
    """Return the pipeline, if one was given, and the settings."""
    if (options.pipeline is None) == (options.images is None):
        raise ValueError("give either --pipeline or --images to evaluate")
    if options.images:
        check_unused(EvaluationConfig, options, UNUSED_WITH_IMAGES, "the images are given")
        return None, sampling_config(EvaluationConfig, options, {})
    pipeline = find_pipeline(options.pipeline)
    return pipeline, sampling_config(EvaluationConfig, options, default_sampler(pipeline.scheduler))


@command
def main() -> None:
    """Evaluate, and print and write the report."""
    options = parse(sys.argv[1:])
    pipeline, config = read_settings(options)
    judged, folder = Path(options.pipeline or options.images), folder_of_report(options)
    check_report_folder(folder)
    start_process()
    accelerator = Accelerator(cpu=must_use_cpu(), mixed_precision="no")
    train, test = load_set(options.data, pipeline)
    judges, held_out = find_judges(train), 0 if test is None else len(test)
    of_set = reasons_of_set(len(train), held_out, bool(judges))

    started = time.perf_counter()
    subject: dict[str, Any] = {"judged": judged.name, "set": f"{options.data.source}, {len(train):,} training images"}
    if pipeline is None:
        samples, reasons = from_images(judged, train, test)
        num_images = len(samples.sets[0])
    else:
        config, reasons = config.shrunk(held_out), reasons_against(pipeline)
        num_images = config.num_images
    sections = config.choose_sections({**of_set, **reasons})
    if "distances" in sections:
        check_count(num_images, held_out)
    if pipeline is not None:
        images = train if test is None else test
        generator, facts = from_pipeline(pipeline, config, sections, images, accelerator.device)
        subject |= facts
    left_out = {} if config.sections else {name: why for name, why in of_set.items() if name not in reasons}
    notes = notes_on(sections, left_out, num_images, min(len(train), held_out))
    tell([f"{note}." for note in notes])
    inception = open_inception(config, train, accelerator.device) if "inception" in sections else None
    if pipeline is not None:
        with tqdm(total=generator.work, unit="call", unit_scale=True, desc="sampling") as bar:
            generator.on_work = lambda calls: bar.update(calls * accelerator.num_processes)
            samples = generator.generate()
    seconds = {"sampling": time.perf_counter() - started}
    if accelerator.is_main_process:
        print("judging …", file=sys.stderr)
        reporter = Reporter(samples, judges, train, test, config.seed, inception)
        report = {"subject": subject, **make_report(reporter, sections, notes)}
        seconds["judging"] = time.perf_counter() - started - seconds["sampling"]
        speeds = {sampler: config.sweep_images / spent for sampler, spent in samples.seconds_by_sampler.items()}
        page, pictures = render(report, speeds), plot_report(report, samples, train)
        write_report(folder, report, page, pictures, seconds, speeds)
        print("\n".join(line for line in page.splitlines() if not line.startswith("![")))  # a terminal shows none
        print(f"report: {folder / 'report.md'}")
        print(f"{seconds['sampling']:.0f} s of sampling, {seconds['judging']:.0f} s of judging")
        if options.pipeline and not options.output_dir and Path(options.pipeline).exists():
            with optional("updating the model card"):
                update_card(judged, report)


if __name__ == "__main__":
    main()
