"""Distil a trained denoiser into one that samples in 1, 2 or 4 network calls.

accelerate launch scripts/distill.py --config configs/distill.yaml.
"""

import sys
from dataclasses import fields, replace

from pipelines import find_pipeline
from pipelines.commands.parser import Parser, command
from pipelines.commands.sets import check_set, data_of_run
from pipelines.commands.train import load_images, train_and_report, typed_command
from pipelines.training import Trainer, start_accelerator
from pipelines.training.distillation import DistillationRun, GuidanceStudent, student_of
from pipelines.training.score_identity import Distiller
from pipelines.training.trajectories import TrajectoryStudent

LEARNERS = {"sid": Distiller, "trajectories": TrajectoryStudent, "guidance": GuidanceStudent}


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_class_arguments(DistillationRun)
    return parser


@command
def main() -> None:
    """Distil, and print what was written and the next command."""
    parser = build_parser()
    parser.set_defaults(data_of_run(parser.parse_args(sys.argv[1:]).distillation.teacher))
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    config = DistillationRun(**{field.name: options[field.name] for field in fields(DistillationRun)})
    accelerator = start_accelerator(config)
    teacher = find_pipeline(config.distillation.teacher)
    model, noise_schedule = student_of(teacher, config.distillation)
    config = replace(config, data=replace(config.data, size=config.data.size or teacher.image_shape[1:]))
    images, held_out = load_images(config.data, config.output_dir)
    check_set(images, teacher, config.data)
    kind = LEARNERS[config.distillation.objective]
    learner = kind(config.distillation, teacher, config.training, model, noise_schedule, accelerator, images)
    trainer = Trainer(config, learner, held_out, typed_command())
    train_and_report(trainer, f"distilling {config.distillation.teacher} ({model.num_parameters():,} parameters)")


if __name__ == "__main__":
    main()
