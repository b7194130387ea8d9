"""Files and settings that nobody would write by mistake: each is read rightly or refused in one line."""

import copy
import io
import json
import os
import pickle
import shutil
import struct
import sys

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from denoiser.checks import check_positive
from denoiser.data import CLASS_NAMES
from denoiser.files import MANIFEST
from denoiser.unet import UNet
from pipelines import SCHEDULERS, DenoisingPipeline, find_pipeline, load_pipeline, make_scheduler
from pipelines.commands.inputs import parse_seeds
from pipelines.commands.parsed_run import ParsedRun
from pipelines.commands.parser import command
from pipelines.training.checkpoint import RunFolder, check_whole, list_checkpoints
from pipelines.training.config import TrackingConfig
from pipelines.training.tracking import Tracker
from tests.conftest import ROOT, tiny_unet
from tests.faults.runs import SOAK
from tests.pipelines.training.conftest import make_trainer, sign  # noqa: F401 - a fixture

settings.register_profile(
    "here",
    deadline=None,
    derandomize=not SOAK,
    max_examples=5000 if SOAK else 25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("here")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SCRAPS = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 20_000)


@st.composite
def damaged(draw, content):
    """Return bytes with some of them other ones, cut off, or doubled."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 64)))
    return content[:start] + draw(st.binary(max_size=64)) + content[draw(st.sampled_from([start, end, len(content)])) :]


@given(
    widths=st.lists(st.sampled_from([8, 16, 24, 32]), min_size=1, max_size=3),
    blocks=st.integers(0, 2),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    channels=st.integers(0, 3),
    classes=st.none() | st.integers(0, 4),
    patch=st.integers(1, 3),
    attention=st.lists(st.integers(-1, 3), max_size=2),
    concatenate=st.booleans(),
)
def test_every_network_is_refused_or_keeps_the_shape(
    widths, blocks, size, channels, classes, patch, attention, concatenate
):
    options = {"norm_group_size": 8, "attention_head_dim": 8, "patch_size": patch, "attention_levels": attention}
    options |= {"sample_size": size, "in_channels": channels, "out_channels": channels, "layers_per_block": blocks}
    options |= {"block_out_channels": widths, "num_class_embeds": classes, "concatenate_skips": concatenate}
    try:
        network = UNet(**options)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    noisy = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    labels = None if classes is None else torch.tensor([0, classes - 1])
    sample = network(noisy, 3, class_labels=labels).sample
    assert sample.shape == noisy.shape
    assert sample.isfinite().all()


@pytest.fixture(scope="module")
def pipeline():
    pipeline = DenoisingPipeline(tiny_unet(sample_size=8), DDPMScheduler(), CLASS_NAMES)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    steps=st.integers(1, 6),
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    labels=st.lists(st.sampled_from(CLASS_NAMES), min_size=5, max_size=5),
    one=st.integers(0, 4),
)
def test_an_image_is_a_function_of_its_seed_and_its_label_alone(pipeline, name, steps, seeds, labels, one):
    pipeline.scheduler = make_scheduler(name, DDPMScheduler().config)
    options = {"num_inference_steps": steps, "output_type": "pt"}
    one, labels = one % len(seeds), labels[: len(seeds)]
    images = pipeline(class_labels=labels, seed=seeds, **options).images
    alone = pipeline(class_labels=labels[one], seed=[seeds[one]], **options).images
    assert torch.equal(images[one], alone[0])


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 50)), min_size=1, max_size=6))
def test_seeds_are_read_as_they_are_written(ranges):
    text = ",".join(str(first) if not more else f"{first}-{first + more}" for first, more in ranges)
    assert parse_seeds(text) == [seed for first, more in ranges for seed in range(first, first + more + 1)]


SETTINGS = (ROOT / "configs" / "smoke.yaml").read_bytes()


@pytest.mark.slow
@given(damaged(SETTINGS) | SCRAPS)
@example(SETTINGS[: SETTINGS.index(b"training:") + len("training:")])
def test_any_config_is_read_or_refused_in_one_line(tmp_path, capsys, content):
    (tmp_path / "config.yaml").write_bytes(content)
    sys.argv = ["train.py"]
    capsys.readouterr()
    try:
        command(lambda: ParsedRun(["--config", str(tmp_path / "config.yaml")]))()
    except SystemExit as ended:
        assert ended.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("train.py: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@given(st.lists(SCRAPS | st.just(b'{"step": 3, "loss": 0.5}'), max_size=4), st.integers(0, 5))
def test_any_lines_of_figures_are_kept_or_dropped(tmp_path, lines, step):
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(b"\n".join(lines) + b'\n{"step": 1}\n')
    tracker = Tracker(Accelerator(cpu=True), TrackingConfig(mode="disabled"), folder, {}, step)
    tracker.log({"loss": 1.0}, step + 1)
    found = [json.loads(line)["step"] for line in folder.metrics.read_bytes().splitlines()]
    assert found[-1] == step + 1
    assert all(earlier <= step for earlier in found[:-1])
    assert step < 1 or 1 in found[:-1]


@given(st.data())
def test_any_other_file_of_a_checkpoint_is_seen(checkpoint, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("checkpoint") / checkpoint.name
    shutil.copytree(checkpoint, folder)
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir() if path.is_file())))
    content = (folder / name).read_bytes()
    changed = data.draw(damaged(content) | SCRAPS)
    (folder / name).write_bytes(changed)
    if changed == content or (name == MANIFEST and _same_json(changed, content)):
        check_whole(folder)
    else:
        with pytest.raises(ValueError, match="is damaged") as refused:
            check_whole(folder)
        assert "\n" not in str(refused.value)
    shutil.rmtree(folder.parent)


@given(st.data())
def test_what_a_stranger_signs_is_loaded_or_refused(checkpoint, make_trainer, tmp_path_factory, data):  # noqa: F811
    folder = tmp_path_factory.mktemp("checkpoint") / checkpoint.name
    shutil.copytree(checkpoint, folder)
    path = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.name != MANIFEST)))
    changed = damaged(path.read_bytes())
    if path.name == "state.json":
        changed |= states(json.loads(path.read_text(encoding="utf-8"))).map(lambda state: json.dumps(state).encode())
    elif path.name == "optimizer.bin":
        changed |= states(torch.load(path, weights_only=True), TENSORS).map(saved_bytes)
    path.write_bytes(data.draw(changed | SCRAPS))
    sign(folder)
    try:
        trainer = make_trainer("another", max_steps=2, resume=str(folder))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        trainer.learner.take_step(0.5)
    shutil.rmtree(folder.parent)


TENSORS = st.lists(st.integers(0, 3), max_size=3).map(torch.ones)


@st.composite
def states(draw, state, values=JSON):
    """Return a state with one of its values another, or none."""
    copied = copy.deepcopy(state)
    inner = copied
    while True:
        key = draw(st.sampled_from(sorted(inner, key=str))) if isinstance(inner, dict) else 0
        if isinstance(inner[key], (dict, list)) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            continue
        if draw(st.booleans()):
            inner[key] = draw(values | JSON)
        else:
            del inner[key]
        return copied


def saved_bytes(state):
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _same_json(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except (ValueError, RecursionError):
        return False


@pytest.fixture
def checkpoint(make_trainer):  # noqa: F811
    trainer = make_trainer(max_steps=1)
    trainer.train()
    return list_checkpoints(trainer.folder.checkpoints)[-1]


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipeline.scheduler = DDPMScheduler()
    pipeline.save_pretrained(folder)
    return folder


@given(st.data())
def test_any_weights_are_loaded_or_refused(saved, data):
    path = saved / "unet" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = data.draw(damaged(content[8 : 8 + length]) | SCRAPS)
    count = data.draw(st.sampled_from([len(header), length, 0, 2**63]))
    try:
        path.write_bytes(struct.pack("<Q", count) + header + content[8 + length :])
        try:
            load_pipeline(saved)
        except ValueError as error:
            assert "cannot be loaded as a pipeline" in str(error)
    finally:
        path.write_bytes(content)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_a_pickle_in_a_checkpoint_runs_no_code(make_trainer, checkpoint, tmp_path, name):  # noqa: F811
    with (checkpoint / name).open("wb") as file:
        pickle.dump(Bomb(tmp_path / "run_by_pickle"), file)
    sign(checkpoint)
    if name == "optimizer.bin":
        with pytest.raises(ValueError, match="is damaged"):
            make_trainer(max_steps=2, resume="latest")
    else:
        make_trainer(max_steps=2, resume="latest")
    assert not (tmp_path / "run_by_pickle").exists()


def test_a_pickle_in_the_place_of_weights_is_not_looked_at(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "pipeline")
    (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "run_by_pickle"), file)
    with pytest.raises(ValueError, match="cannot be loaded as a pipeline"):
        find_pipeline(tmp_path / "pipeline")
    assert not (tmp_path / "run_by_pickle").exists()


def test_nothing_is_unpickled_or_run_from_afar():
    check_positive(files=len(sources := [*ROOT.glob("denoiser/**/*.py"), *ROOT.glob("pipelines/**/*.py")]))
    for path in [*sources, *ROOT.glob("scripts/*.py")]:
        text = path.read_text(encoding="utf-8")
        text = text.replace('torch.load(weights, map_location="cpu", weights_only=True)', "")  # which unpickles tensors
        for word in (
            "pickle.load",
            "torch.load(",
            "trust_remote_code",
            "allow_pickle=True",
            "custom_pipeline",
            "eval(",
        ):
            assert word not in text.replace(".eval(", ""), (path, word)
