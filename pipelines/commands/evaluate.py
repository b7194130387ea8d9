"""Judge a trained pipeline, or images: python scripts/evaluate.py --pipeline runs/fashion_mnist/pipeline."""

import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from denoiser.data import ImageSet, load_fashion_mnist
from denoiser.device import in_best_layout, must_use_cpu
from denoiser.processes import optional, share_out, start_process
from pipelines import PRETRAINED, DenoisingPipeline, find_pipeline
from pipelines.commands.inputs import load_images
from pipelines.commands.parser import Parser, add_sampling_arguments, command, sampling_config
from pipelines.evaluation.comparison import check_count, check_images
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.drawing import Drawing, Drawn
from pipelines.evaluation.judge import IMAGE_SHAPE, load_judge
from pipelines.evaluation.markdown import render
from pipelines.evaluation.plots import draw_pictures
from pipelines.evaluation.report import Evidence, Report, flat_figures, make_report
from pipelines.evaluation.writing import check_report_folder, write_report
from pipelines.sampling import own_sampler
from pipelines.schedulers import distilled_calls
from pipelines.training import TrackingConfig
from pipelines.training.card import update_card
from pipelines.training.tracking import close_wandb, start_wandb


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument("--pipeline", type=str | None, help="folder of a saved pipeline, or teacher, or student")
    parser.add_argument("--images", type=str | None, help="folder of PNG files, or an .npz file, in its place")
    parser.add_argument(
        "--output_dir", type=str | None, help="folder of the report (default: that of what is judged, or runs/teacher)"
    )
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    add_sampling_arguments(parser, EvaluationConfig)
    parser.add_class_arguments(TrackingConfig, "tracking")
    parser.set_defaults({"tracking.mode": "disabled"})
    return parser


def from_images(path: Path, config: EvaluationConfig, test: ImageSet) -> tuple[Drawn, list[str], dict[str, Any]]:
    """Return given images as if they had been drawn, the sections for them, and what the report says of them."""
    images, labels = load_images(path)
    sections = config.choose_sections("images were given, and it needs a pipeline", labels is not None, False)
    check_images(images, len(test))
    return Drawn([images], labels), sections, {}


def from_pipeline(
    pipeline: DenoisingPipeline, config: EvaluationConfig, test: ImageSet, accelerator: Accelerator
) -> tuple[Drawing, list[str], dict[str, Any]]:
    """Return what draws from a pipeline, the sections for it, and what the report says of it."""
    check_count(config.num_images, len(test))
    if pipeline.image_shape != IMAGE_SHAPE:
        raise ValueError(f"the pipeline draws images of {pipeline.image_shape}; the judge sees {IMAGE_SHAPE}")
    conditional = pipeline.num_classes is not None
    distilled = (
        "the network is distilled, for a few noise levels only" if distilled_calls(pipeline.scheduler.config) else None
    )
    sections = config.choose_sections(distilled, conditional, conditional and hasattr(pipeline.unet, "null_label"))
    pipeline.to(accelerator.device)
    in_best_layout(pipeline.unet)
    drawing = Drawing(pipeline, config, sections, test.to(accelerator.device), share_out)
    subject = {
        "network": f"{type(pipeline.unet).__name__}, {pipeline.unet.num_parameters():,} parameters",
        "sampler": f"{config.scheduler}, {config.steps} steps, guidance scale {config.guidance_scale:g}",
    }
    return drawing, sections, subject


def draw_all(drawing: Drawing, accelerator: Accelerator) -> Drawn:
    """Draw on all processes, with a bar of the network calls."""
    hidden = not accelerator.is_main_process
    with tqdm(total=drawing.work, unit="call", unit_scale=True, desc="drawing", disable=hidden) as bar:
        drawing.on_work = lambda calls: bar.update(calls * accelerator.num_processes)
        return drawing.draw()


def judge_all(drawn: Drawn, sections: list[str], evidence: Evidence) -> Report:
    """Make the report, with a bar of its sections."""
    with tqdm(
        total=len(sections), desc="judging", bar_format="{desc}: section {n_fmt} of {total_fmt} {postfix}"
    ) as bar:

        def tell(section: str) -> None:
            bar.set_postfix_str(section)
            bar.update()

        return make_report(drawn, sections, evidence, tell)


@command
def main() -> None:
    """Judge, write the report, and print it."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    if (options.pipeline is None) == (options.images is None):
        raise ValueError("give either --pipeline or --images: what shall be judged")
    pipeline = None if options.pipeline is None else find_pipeline(options.pipeline)
    config = sampling_config(EvaluationConfig, options, {} if pipeline is None else own_sampler(pipeline.scheduler))
    judged = Path(options.pipeline or options.images)
    shipped = options.pipeline in PRETRAINED
    beside = Path("runs") / judged if shipped else judged.absolute().parent
    folder = Path(options.output_dir) if options.output_dir else beside
    check_report_folder(folder)
    tracked = options.tracking.mode != "disabled"
    start_process()
    accelerator = Accelerator(cpu=must_use_cpu(), mixed_precision="no", log_with="wandb" if tracked else None)
    judge = load_judge()
    with accelerator.main_process_first():
        train, test = load_fashion_mnist(options.data_root, "train"), load_fashion_mnist(options.data_root, "test")

    started = time.perf_counter()
    if pipeline is None:
        drawn, sections, subject = from_images(judged, config, test)
    else:
        drawing, sections, subject = from_pipeline(pipeline, config, test, accelerator)
    subject = {"judged": judged.name, **subject}
    if tracked:
        start_wandb(accelerator, options.tracking, folder, subject)
    if options.pipeline:
        drawn = draw_all(drawing, accelerator)
    seconds = {"drawing": time.perf_counter() - started}
    if accelerator.is_main_process:
        report = {"subject": subject, **judge_all(drawn, sections, Evidence(judge, train, test, config.seed))}
        seconds["judging"] = time.perf_counter() - started - seconds["drawing"]
        speeds = {sampler: config.sweep_images / spent for sampler, spent in drawn.seconds_by_sampler.items()}
        page, pictures = render(report, speeds), draw_pictures(report, drawn, train)
        write_report(folder, report, page, pictures, seconds, speeds)
        print("\n".join(line for line in page.splitlines() if not line.startswith("![")))  # a terminal shows none
        print(f"report: {folder / 'report.md'}")
        print(f"{seconds['drawing']:.0f} s of drawing, {seconds['judging']:.0f} s of judging")
        with optional("logging to wandb"):
            accelerator.log(flat_figures(report))
            for tracker in accelerator.trackers:
                tracker.log_images({name: [picture] for name, picture in pictures.items()})
        if options.pipeline and not options.output_dir and not shipped:
            with optional("updating the model card"):
                update_card(judged, report)
    if tracked and (sync_command := close_wandb(accelerator, folder)):
        accelerator.print(f"logged offline; to upload: {sync_command}")


if __name__ == "__main__":
    main()
