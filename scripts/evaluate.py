"""Judge a trained pipeline, or images: python scripts/evaluate.py --pipeline runs/fashion_mnist/pipeline."""

import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from PIL import Image
from tqdm import tqdm

from denoiser.cli import Parser, run
from denoiser.data import load_fashion_mnist
from denoiser.evaluation.comparison import check_count, check_images
from denoiser.evaluation.config import EvaluationConfig
from denoiser.evaluation.drawing import Drawing, Drawn
from denoiser.evaluation.inputs import load_images
from denoiser.evaluation.judge import IMAGE_SHAPE, load_judge
from denoiser.evaluation.markdown import render
from denoiser.evaluation.plots import draw_pictures
from denoiser.evaluation.report import Evidence, Report, make_report
from denoiser.files import atomic_path, check_writable
from denoiser.training import TrackingConfig
from denoiser.training.card import update_card
from denoiser.training.device import in_best_layout, must_use_cpu, use_all_cores
from denoiser.training.processes import share_out
from denoiser.training.tracking import start_wandb
from pipelines import DenoisingPipeline, load_pipeline


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_argument("--pipeline", type=str | None, help="folder of a saved pipeline")
    parser.add_argument("--images", type=str | None, help="folder of PNG files, or an .npz file, in its place")
    parser.add_argument("--output_dir", type=str | None, help="folder of the report (default: that of what is judged)")
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    parser.add_class_arguments(EvaluationConfig)
    parser.add_class_arguments(TrackingConfig, "tracking")
    parser.set_defaults({"tracking.mode": "disabled"})
    return parser


def draw(
    pipeline: DenoisingPipeline, config: EvaluationConfig, sections: list[str], test: Any, accelerator: Accelerator
) -> Drawn:
    """Draw all that the report needs, on all processes, with a bar of the network calls left."""
    bar = tqdm(unit="call", unit_scale=True, disable=not accelerator.is_main_process, desc="drawing", mininterval=1.0)
    with bar:
        drawing = Drawing(
            pipeline, config, share_out, on_work=lambda calls: bar.update(calls * accelerator.num_processes)
        )
        bar.reset(drawing.work(sections, len(test)))
        return drawing.draw(sections, test)


def write(folder: Path, report: Report, timings: dict[str, Any], pictures: dict[str, Image.Image]) -> str:
    """Write the report's files, pictures first, so that a page never shows what is not there. Returns the page."""
    with atomic_path(folder / "report") as temporary:
        temporary.mkdir()
        for name, picture in pictures.items():
            picture.save(temporary / f"{name}.png")
    page = render(report, timings)
    for name, text in (
        ("report.json", json.dumps(report, indent=2) + "\n"),
        ("timings.json", json.dumps(timings, indent=2) + "\n"),
        ("report.md", page),
    ):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)
    return page


def figures_to_log(report: Report) -> dict[str, float]:
    """Return the means of the distances and the bound, by name."""
    figures = {
        f"{space}/{split}/{name}": figure["mean"]
        for space, splits in report.get("distances", {}).items()
        for split, columns in splits.items()
        for name, figure in columns["samples"].items()
    }
    if "likelihood" in report:
        figures["bits_per_dimension"] = report["likelihood"]["bits_per_dimension"]
    return figures


def main() -> None:
    """Judge, write the report, and print it."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    config = EvaluationConfig(**{field.name: options[field.name] for field in fields(EvaluationConfig)})
    if (options.pipeline is None) == (options.images is None):
        raise ValueError("give either --pipeline or --images: what shall be judged")
    judged = Path(options.pipeline or options.images)
    folder = Path(options.output_dir) if options.output_dir else judged.absolute().parent
    check_writable(folder / "report.json")
    use_all_cores(PartialState(cpu=must_use_cpu()))
    accelerator = Accelerator(cpu=must_use_cpu(), log_with=None if options.tracking.mode == "disabled" else "wandb")
    judge = load_judge()
    with accelerator.main_process_first():
        train, test = (load_fashion_mnist(options.data_root, split) for split in ("train", "test"))

    started = time.perf_counter()
    subject: dict[str, Any] = {"judged": judged.name}
    if options.images:
        images, labels = load_images(judged)
        sections = config.choose_sections(False, labels is not None, False)
        check_images(images, len(test))
        drawn = Drawn([images], labels)
    else:
        check_count(config.num_images, len(test))
        pipeline = load_pipeline(judged).to(accelerator.device)
        if pipeline.image_shape != IMAGE_SHAPE:
            raise ValueError(f"{judged} draws images of {pipeline.image_shape}; the judge sees {IMAGE_SHAPE}")
        sections = config.choose_sections(True, pipeline.num_classes is not None, pipeline.num_classes is not None)
        in_best_layout(pipeline.unet)
        drawn = draw(pipeline, config, sections, test.to(accelerator.device), accelerator)
        subject |= {
            "network": f"{type(pipeline.unet).__name__}, {pipeline.unet.num_parameters():,} parameters",
            "sampler": f"{config.scheduler}, {config.steps} steps, guidance scale {config.guidance_scale:g}",
        }
    drawing_seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        evidence = Evidence(judge, train, test, config.seed)
        with tqdm(sections, desc="judging", bar_format="{desc}: {n_fmt} of {total_fmt} {postfix}") as bar:

            def tell(section: str) -> None:
                bar.set_postfix_str(section)
                bar.update()

            report = {"subject": subject, **make_report(drawn, sections, evidence, tell)}
        timings = {
            "drawing_seconds": drawing_seconds,
            "judging_seconds": time.perf_counter() - started - drawing_seconds,
            "images_per_second": {
                f"{name} {steps}": config.sweep_images / seconds
                for (name, steps), seconds in drawn.seconds_by_sampler.items()
            },
        }
        pictures = draw_pictures(report, drawn, train)
        page = write(folder, report, timings, pictures)
        if options.pipeline:
            update_card(judged, report)
        print("\n".join(line for line in page.splitlines() if not line.startswith("![")))  # a terminal shows none
        print(
            f"report: {folder / 'report.md'}\n{drawing_seconds:.0f} s of drawing, "
            f"{timings['judging_seconds']:.0f} s of judging"
        )
    if options.tracking.mode != "disabled":
        start_wandb(accelerator, options.tracking, folder, subject)
        if accelerator.is_main_process:
            accelerator.log(figures_to_log(report))
            for tracker in accelerator.trackers:
                tracker.log_images({name: [picture] for name, picture in pictures.items()})
        accelerator.end_training()


if __name__ == "__main__":
    run(main)
