"""Model card of a saved pipeline: `README.md` with the metadata of the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from denoiser.data import CLASS_NAMES
from denoiser.files import atomic_path
from pipelines import DenoisingPipeline, SamplingConfig
from pipelines.evaluation.markdown import distances, render_validation
from pipelines.schedulers import make_scheduler
from pipelines.spacing import used_spacing
from pipelines.training.checkpoint import Progress

CARD_FILE, GRID_FILE = "README.md", "samples.png"
_SPACINGS = {"timesteps": "", "log-snr": " even in log SNR"}
_EVALUATION = re.compile(r"(<!-- evaluation -->\n).*(<!-- end of evaluation -->)", re.DOTALL)

_FROM_PYTHON = "Trained from Python; the run's `config.yaml` has the settings."
_TEMPLATE = """
# DDPM with {network}

A `{network}` of {parameters:,} parameters that predicts `{prediction_type}` for a DDPM of {timesteps} timesteps,
{made} for {steps:,} optimizer steps ({minutes:.1f} minutes) on images of {shape}. The weights are
the average (EMA) of the trained ones.

![samples](samples.png)

Sampled with `{sampler}` in {sampler_steps} steps{spacing}, guidance scale {guidance_scale:g}{autoguidance}{classes}.

```python
from pipelines import load_pipeline, make_scheduler

pipeline = load_pipeline("pipeline")
pipeline.scheduler = make_scheduler("{sampler}", pipeline.scheduler.config)
images = pipeline(batch_size=8, seed=0, num_inference_steps={sampler_steps}).images
```

After `import pipelines`, diffusers loads it too: `DiffusionPipeline.from_pretrained("pipeline")`.

## Training

{command}

## Evaluation

<!-- evaluation -->
{evaluation}<!-- end of evaluation -->
"""


def write_card(
    folder: Path,
    grid: Image.Image,
    pipeline: DenoisingPipeline,
    sampling: SamplingConfig,
    progress: Progress,
    figures: dict[str, float],
    command: str | None,
    made: str,
) -> None:
    """Write the card and its sample grid into the folder of a saved pipeline.

    Args:
        made: How the network was made, as "trained".
    """
    names, config, network = pipeline.config.class_names, pipeline.scheduler.config, type(pipeline.unet).__name__
    sampler = make_scheduler(sampling.scheduler, config)
    metadata = {
        **({"datasets": ["fashion_mnist"], "license": "mit"} if tuple(names or ()) == CLASS_NAMES else {}),
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "ddpm", "denoiser", *(["class-conditional"] if names else [])],
    }
    text = _TEMPLATE.format(
        network=network,
        parameters=pipeline.unet.num_parameters(),
        prediction_type=config.prediction_type,
        timesteps=config.num_train_timesteps,
        made=made,
        steps=progress.step,
        minutes=progress.seconds / 60,
        shape="x".join(map(str, pipeline.image_shape)),
        sampler=sampling.scheduler,
        sampler_steps=sampling.steps,
        spacing=_SPACINGS[used_spacing(sampling.spacing, pipeline.config.spacing, sampler)],
        guidance_scale=sampling.guidance_scale,
        autoguidance=_autoguidance(pipeline),
        classes=f"; classes, in order: {', '.join(names)}" if names else "",
        command=f"```sh\n{command}\n```" if command else _FROM_PYTHON,
        evaluation=render_validation(figures) if figures else "Not evaluated yet: see `scripts/evaluate.py`.\n",
    )
    # names of folders that the locale cannot read keep their bytes
    (folder / CARD_FILE).write_text(f"---\n{yaml.safe_dump(metadata)}---\n{text}", "utf-8", "surrogateescape")
    grid.save(folder / GRID_FILE)


def _autoguidance(pipeline: DenoisingPipeline) -> str:
    if pipeline.guide is None:
        return ""
    return (
        f", autoguidance scale {pipeline.autoguidance_scale:g} by a guide of {pipeline.guide.num_parameters():,} "
        "parameters"
    )


def card_files(folder: Path, repository: str) -> dict[str, bytes]:
    """Return the files of the card, by name, for a repository of the Hub, from which its code loads."""
    files = {path.name: path.read_bytes() for path in (folder / CARD_FILE, folder / GRID_FILE) if path.is_file()}
    if CARD_FILE in files:
        text = files[CARD_FILE].decode("utf-8", "replace").replace("load_pipeline", "find_pipeline")
        # diffusers itself downloads no pipeline with components or settings of another package
        text = text.replace('from_pretrained("pipeline")', f'from_pretrained(snapshot_download("{repository}"))')
        files[CARD_FILE] = text.replace('("pipeline")', f'("{repository}")').encode()
    return files


def update_card(folder: Path, report: dict[str, Any]) -> None:
    """Replace the card's evaluation by the distances of a report, if the pipeline has such a card."""
    path = folder / CARD_FILE
    if "distances" not in report or not path.is_file():
        return
    facts = report["subject"]
    intro = f"{report['sets']} sets of {report['images']:,} images, {facts['sampler']}; mean ± spread.\n\n"
    notes = "".join(f"{note}.\n\n" for note in report.get("notes", ()))
    page = intro + notes + distances(report).removeprefix("## Distances\n\n")
    text, count = _EVALUATION.subn(lambda found: found[1] + page + found[2], path.read_text("utf-8", "surrogateescape"))
    if count:
        with atomic_path(path) as temporary:
            temporary.write_text(text, "utf-8", "surrogateescape")
