"""Evaluate a trained pipeline, or images: python scripts/evaluate.py --pipeline runs/fashion_mnist/pipeline."""

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import tqdm

from denoiser.data import ImageSet, load_fashion_mnist
from denoiser.device import in_best_layout, must_use_cpu
from denoiser.processes import optional, start_process
from pipelines import PRETRAINED, DenoisingPipeline, find_pipeline
from pipelines.commands.inputs import load_images
from pipelines.commands.parser import Parser, add_sampling_arguments, check_unused, command, needed, sampling_config
from pipelines.evaluation.comparison import check_count, check_images
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judge import IMAGE_SHAPE, load_judge
from pipelines.evaluation.markdown import render
from pipelines.evaluation.report import Reporter, check_report_folder, make_report, write_report
from pipelines.evaluation.samples import SampleGenerator, Samples
from pipelines.sampling import default_sampler
from pipelines.stepping import distilled_calls

with needed("eval"):
    from pipelines.evaluation.plots import plot_report
from pipelines.training.card import update_card


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument(
        "--pipeline", type=str | None, help="folder of a pipeline, teacher, student, or user/name of the Hub"
    )
    parser.add_argument("--images", type=str | None, help="folder of PNG files, or an .npz file, instead of a pipeline")
    parser.add_argument(
        "--output_dir",
        type=str | None,
        help="folder of the report (default: beside what is evaluated, or runs/teacher, runs/user/name)",
    )
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    add_sampling_arguments(parser, EvaluationConfig)
    return parser


def from_images(path: Path, config: EvaluationConfig, test: ImageSet) -> tuple[Samples, list[str], dict[str, Any]]:
    """Return images as samples, their sections, and the report's facts about them."""
    images, labels = load_images(path)
    sections = config.choose_sections("images were given, and it needs a pipeline", labels is not None, False)
    check_images(images, len(test))
    return Samples([images], labels), sections, {}


def from_pipeline(
    pipeline: DenoisingPipeline, config: EvaluationConfig, test: ImageSet, accelerator: Accelerator
) -> tuple[SampleGenerator, list[str], dict[str, Any]]:
    """Return the sample generator of a pipeline, its sections, and the report's facts about it."""
    check_count(config.num_images, len(test))
    if pipeline.image_shape != IMAGE_SHAPE:
        raise ValueError(f"the pipeline makes images of {pipeline.image_shape}; the judge sees {IMAGE_SHAPE}")
    conditional = pipeline.num_classes is not None
    distilled = (
        "the network is distilled, for a few noise levels only" if distilled_calls(pipeline.scheduler.config) else None
    )
    sections = config.choose_sections(distilled, conditional, conditional and hasattr(pipeline.unet, "null_label"))
    pipeline.to(accelerator.device)
    in_best_layout(pipeline.unet)
    generator = SampleGenerator(pipeline, config, sections, test.to(accelerator.device))
    subject = {
        "network": f"{type(pipeline.unet).__name__}, {pipeline.unet.num_parameters():,} parameters",
        "sampler": f"{config.scheduler}, {config.steps} steps, guidance scale {config.guidance_scale:g}",
    }
    return generator, sections, subject


@command
def main() -> None:
    """Evaluate, and print and write the report."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    if (options.pipeline is None) == (options.images is None):
        raise ValueError("give either --pipeline or --images to evaluate")
    if options.images:
        unused = [each.name for each in fields(EvaluationConfig) if each.name not in ("seed", "sections")]
        check_unused(EvaluationConfig, options, unused, "the images are given")
    pipeline = None if options.pipeline is None else find_pipeline(options.pipeline)
    config = sampling_config(EvaluationConfig, options, {} if pipeline is None else default_sampler(pipeline.scheduler))
    judged = Path(options.pipeline or options.images)
    named = options.pipeline in PRETRAINED or not judged.exists()  # not a folder, but a name, also of the Hub
    beside = Path("runs") / judged if named else judged.absolute().parent
    folder = Path(options.output_dir) if options.output_dir else beside
    check_report_folder(folder)
    start_process()
    accelerator = Accelerator(cpu=must_use_cpu(), mixed_precision="no")
    judge = load_judge()
    with accelerator.main_process_first():
        train, test = load_fashion_mnist(options.data_root, "train"), load_fashion_mnist(options.data_root, "test")

    started = time.perf_counter()
    if pipeline is None:
        samples, sections, subject = from_images(judged, config, test)
    else:
        generator, sections, subject = from_pipeline(pipeline, config, test, accelerator)
    subject = {"judged": judged.name, **subject}
    if options.pipeline:
        with tqdm(total=generator.work, unit="call", unit_scale=True, desc="sampling") as bar:
            generator.on_work = lambda calls: bar.update(calls * accelerator.num_processes)
            samples = generator.generate()
    seconds = {"sampling": time.perf_counter() - started}
    if accelerator.is_main_process:
        print("judging …", file=sys.stderr)
        reporter = Reporter(samples, judge, train, test, config.seed)
        report = {"subject": subject, **make_report(reporter, sections)}
        seconds["judging"] = time.perf_counter() - started - seconds["sampling"]
        speeds = {sampler: config.sweep_images / spent for sampler, spent in samples.seconds_by_sampler.items()}
        page, pictures = render(report, speeds), plot_report(report, samples, train)
        write_report(folder, report, page, pictures, seconds, speeds)
        print("\n".join(line for line in page.splitlines() if not line.startswith("![")))  # a terminal shows none
        print(f"report: {folder / 'report.md'}")
        print(f"{seconds['sampling']:.0f} s of sampling, {seconds['judging']:.0f} s of judging")
        if options.pipeline and not options.output_dir and not named:
            with optional("updating the model card"):
                update_card(judged, report)


if __name__ == "__main__":
    main()
