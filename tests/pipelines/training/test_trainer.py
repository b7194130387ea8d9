import getpass
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from accelerate.utils import is_compiled_module
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image

from denoiser import UNet
from denoiser.data import ImageSet, random_batch
from denoiser.device import in_best_layout
from denoiser.files import MANIFEST
from pipelines import image_grid, load_pipeline, make_scheduler, sample_images
from pipelines.training.checkpoint import check_whole
from pipelines.training.signals import SAME_SIGNAL
from tests.conftest import another_process, tiny_basic_unet, tiny_unet
from tests.pipelines.training.conftest import sign


def train_four_steps(trainer):
    """Train to step 4 of ten, at the rates of all ten."""
    progress = trainer.budget.progress
    trainer.budget.progress = lambda step, accelerator: progress(step, accelerator) if step < 4 else 1.0
    trainer.train()


def metrics(trainer):
    return [
        json.loads(line) for line in (trainer.folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def untimed(lines):
    """Return lines of figures without what the clock tells."""
    by_clock = {"seconds", "images_per_second", "step_milliseconds", "data_milliseconds"}
    return [{name: value for name, value in line.items() if name not in by_clock} for line in lines]


def weights(trainer):
    learner = trainer.learner
    return [*learner.raw_model.state_dict().values(), *learner.ema.shadow_params, *(learner.guide or [])]


def equal(one, other):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("make_model", [tiny_unet, tiny_basic_unet, lambda: tiny_unet(num_class_embeds=None)])
def test_a_run_leaves_figures_grids_checkpoints_and_the_pipeline(make_trainer, make_model):
    trainer = make_trainer(model=make_model(), sample_every=6, checkpoint_every=4, checkpoints_kept=2)
    assert not trainer.finished
    assert trainer.train() is None
    assert trainer.finished
    names = sorted(str(path.relative_to(trainer.folder.path)) for path in trainer.folder.path.glob("*/*"))
    assert names == [
        "checkpoints/step-00000008",
        "checkpoints/step-00000010",
        "pipeline/README.md",
        "pipeline/guide",
        "pipeline/model_index.json",
        "pipeline/samples.png",
        "pipeline/scheduler",
        "pipeline/unet",
        "samples/step-00000006.png",
        "samples/step-00000010.png",
    ]
    assert [line["step"] for line in metrics(trainer)] == [4, 5, 8, 10]
    assert {"loss", "learning_rate", "gradient_norm", "images_per_second", "loss_quarter_1"} <= set(metrics(trainer)[0])


def test_the_saved_pipeline_draws_the_grid_that_the_run_left(make_trainer):
    trainer = make_trainer()
    trainer.train()
    pipeline = load_pipeline(trainer.folder.pipeline)
    pipeline.scheduler = make_scheduler(trainer.config.sampling.scheduler, pipeline.scheduler.config)
    grid = image_grid(sample_images(pipeline, **trainer.config.sampling.arguments()))
    assert grid.tobytes() == Image.open(trainer.folder.grid(trainer.step)).tobytes()
    assert tuple(pipeline.config.class_names) == trainer.learner.images.class_names


def test_the_guide_is_the_average_at_a_share_of_the_run(make_trainer):
    trainer = make_trainer(guide_at=0.4, autoguidance_scale=1.5)  # of ten steps: after the fifth, which began there
    averages, take_step = [], trainer.learner.take_step

    def take_and_note(progress):
        loss = take_step(progress)
        averages.append([shadow.clone() for shadow in trainer.learner.ema.shadow_params])
        return loss

    trainer.learner.take_step = take_and_note
    trainer.train()
    pipeline = load_pipeline(trainer.folder.pipeline)
    assert pipeline.autoguidance_scale == 1.5
    assert pipeline.config.spacing == "log-snr"
    for network, expected in ((pipeline.guide, averages[4]), (pipeline.unet, averages[-1])):
        for parameter, average in zip(network.parameters(), expected, strict=True):
            assert torch.equal(parameter, average)


def test_a_run_without_a_guide_leaves_none(make_trainer):
    trainer = make_trainer(guide_at=None)
    trainer.train()
    assert load_pipeline(trainer.folder.pipeline).guide is None


def test_a_guide_that_is_not_wanted_any_more_is_dropped(make_trainer):
    train_four_steps(make_trainer(checkpoint_every=4, guide_at=0.1))
    another_process()
    trainer = make_trainer(checkpoint_every=4, guide_at=None, resume="latest")
    trainer.train()
    assert load_pipeline(trainer.folder.pipeline).guide is None


@pytest.mark.parametrize(("progress", "kept"), [(0.5, True), (0.7, False)])
def test_a_run_resumed_without_a_guide_keeps_none_that_is_late(make_trainer, progress, kept):
    learner = make_trainer(guide_at=1 / 3).learner
    learner.resume(5, None, progress)
    learner.take_step(progress)
    assert (learner.guide is not None) == kept


def test_the_loss_on_real_images_falls(make_trainer):
    trainer = make_trainer(max_steps=60, batch_size=64, log_every=20, model=UNet(num_class_embeds=10))
    trainer.train()
    losses = [line["loss"] for line in metrics(trainer)]
    assert losses[-1] < 0.33 * losses[0]


@pytest.mark.parametrize("options", [{}, {"loss_weighting": "min_snr"}])
def test_it_takes_the_steps_of_a_plain_loop(make_trainer, some_images, scheduler, options):
    settings = {
        **options,
        "seed": 5,
        "learning_rate": 3e-3,
        "adam_betas": (0.8, 0.95),
        "weight_decay": 0.3,
        "max_grad_norm": 0.5,
        "label_dropout": 0.4,
        "ema_decay": 0.7,
        "ema_power": 0.9,
    }
    trainer = make_trainer(**settings)
    trainer.train()

    model = in_best_layout(tiny_unet()).train()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.95), weight_decay=0.3)
    for step in range(10):
        batch = random_batch(5, step, 16, (1, 16, 16), len(some_images), 1000, 0.4)
        images = some_images.images[batch.indices].float() / 127.5 - 1
        labels = some_images.labels[batch.indices]
        labels[batch.label_dropped] = 10
        timesteps = batch.timesteps
        alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * images + (1 - alpha).sqrt() * batch.noise
        prediction = model(noisy, timesteps, class_labels=labels).sample
        weights = (5 * (1 - alpha) / alpha).clamp(max=1) if options.get("loss_weighting") else 1
        (weights * (prediction - batch.noise).square()).mean().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient.mul_(min(1.0, 0.5 / float(norm)))
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 10)) / 2
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.7, 1 - (1 + step) ** -0.9)  # diffusers' EMAModel counts from one step earlier
        for mean, parameter in zip(average, model.parameters(), strict=True):
            mean.mul_(decay).add_(parameter.detach(), alpha=1 - decay)

    for ours, theirs in zip(trainer.learner.raw_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    saved = load_pipeline(trainer.folder.pipeline).unet
    for ours, theirs in zip(saved.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    gaps = [(ours - trained).abs().max() for ours, trained in zip(saved.parameters(), model.parameters(), strict=True)]
    assert max(gaps) > 1e-3  # the average is not the trained weights


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_network_runs_in_the_precision_asked_for_and_its_weights_stay_float32(make_trainer, precision):
    trainer, seen = make_trainer(mixed_precision=precision, max_steps=1), set()
    trainer.learner.raw_model.encoder[0].blocks[0].residual.conv1.register_forward_hook(
        lambda module, inputs, output: seen.add((module.training, output.dtype))
    )
    trainer.train()
    assert seen == {(True, torch.bfloat16 if precision == "bf16" else torch.float32)}
    assert {parameter.dtype for parameter in trainer.learner.raw_model.parameters()} == {torch.float32}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_trainer):
    one = make_trainer("one", seed=1)
    one.train()
    again = make_trainer("again", seed=1)
    torch.rand(3)  # the global generator plays no part
    again.train()
    other = make_trainer("other", seed=2)
    other.train()
    assert equal(one, again)
    assert not equal(one, other)


@pytest.mark.parametrize(
    ("dropout", "options"), [(0.0, {}), (0.0, {"mixed_precision": "bf16"}), (0.3, {}), (0.0, {"guide_at": 0.1})]
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(make_trainer, dropout, options):
    options = {"checkpoint_every": 4, **options}
    whole = make_trainer("whole", tiny_unet(dropout=dropout), **options)
    whole.train()
    another_process()
    first = make_trainer("parts", tiny_unet(dropout=dropout), **options)
    train_four_steps(first)
    another_process()
    second = make_trainer("parts", tiny_unet(dropout=dropout), **options, resume="latest")
    assert second.step == 4
    second.train()
    assert equal(whole, second)
    assert [line["step"] for line in metrics(second)] == [4, 5, 8, 10]
    assert untimed(metrics(second)) == untimed(metrics(whole))


def test_resuming_drops_the_figures_after_the_checkpoint(make_trainer):
    first = make_trainer(log_every=2, checkpoint_every=4, checkpoints_kept=9)
    first.train()
    shutil.rmtree(first.folder.checkpoints / "step-00000010")  # as if killed before it was saved
    second = make_trainer(log_every=2, checkpoint_every=4, resume="latest")
    assert second.step == 8
    second.train()
    assert [line["step"] for line in metrics(second)] == [2, 4, 6, 8, 10]


def test_resuming_drops_a_line_of_figures_that_was_cut_short(make_trainer):
    first = make_trainer(max_steps=4, log_every=2)
    first.train()
    whole = first.folder.metrics.read_text(encoding="utf-8")
    first.folder.metrics.write_text(whole + '\n{"step": 4, "lo', encoding="utf-8")
    make_trainer(max_steps=6, log_every=2, resume="latest").train()
    assert [line["step"] for line in metrics(first)] == [2, 4, 6]


def test_resuming_with_other_optimizer_settings_uses_them(make_trainer):
    make_trainer(max_steps=4).train()
    second = make_trainer(resume="latest", weight_decay=0.5, adam_betas=(0.5, 0.6))
    assert {(group["weight_decay"], group["betas"]) for group in second.learner.optimizers[0].param_groups} == {
        (0.5, (0.5, 0.6))
    }


@pytest.mark.parametrize(
    ("options", "difference"),
    [({"seed": 1}, "seed 0, not 1"), ({"batch_size": 8}, "images_per_step 16, not 8"), ({"learning_rate": 1e-4}, "")],
)
def test_resuming_with_other_draws_is_warned_of(make_trainer, caplog, options, difference):
    make_trainer(max_steps=4).train()
    assert make_trainer(resume="latest", **options).step == 4
    told = [record.getMessage() for record in caplog.records if "will differ" in record.getMessage()]
    assert len(told) == bool(difference)
    assert all(f"step-00000004 was made with {difference}: the run goes on" in line for line in told)


def test_a_budget_in_minutes_goes_on_where_it_was(make_trainer):
    first = make_trainer(max_steps=3, max_minutes=5)
    first.train()
    second = make_trainer(max_steps=6, max_minutes=5, resume="latest")
    assert second.budget.seconds >= metrics(first)[-1]["seconds"] > 0
    second.train()
    lines = metrics(second)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    spent = (first.budget.seconds / 300, 3 / 6)
    assert second.budget.progress(3, second.accelerator) >= max(spent)


def test_a_run_that_is_extended_is_not_finished_until_its_new_pipeline_is(make_trainer):
    make_trainer(max_steps=4).train()
    second = make_trainer(max_steps=8, checkpoint_every=8, resume="latest")

    def killed(tracker):
        raise KeyboardInterrupt

    second._save_pipeline = killed  # at the end of the steps, with a checkpoint of the last
    with pytest.raises(KeyboardInterrupt):
        second.train()
    another_process()
    third = make_trainer(max_steps=8, resume="latest")
    assert (third.step, third.finished) == (8, False)


def test_a_finished_run_is_finished_and_a_fresh_one_starts(make_trainer):
    fresh = make_trainer(resume="latest")
    assert (fresh.step, fresh.finished) == (0, False)
    fresh.train()
    assert make_trainer(resume="latest").finished


def test_a_run_that_was_killed_before_its_pipeline_was_saved_saves_it_when_resumed(make_trainer):
    first = make_trainer()
    first.train()
    grid = first.folder.grid(first.step).read_bytes()
    shutil.rmtree(first.folder.pipeline)
    second = make_trainer(resume="latest")
    assert (second.step, second.finished) == (10, False)
    second.train()
    assert second.finished
    assert equal(first, second)
    assert (second.folder.pipeline / "model_index.json").is_file()
    assert second.folder.grid(second.step).read_bytes() == grid
    assert [line["step"] for line in metrics(second)] == [5, 10]


def test_accumulated_passes_take_the_step_of_one_large_batch(make_trainer):
    large = make_trainer("large", batch_size=16)
    large.train()
    another_process()
    small = make_trainer("small", batch_size=4, gradient_accumulation_steps=4)
    small.train()
    assert small.learner.ema.optimization_step == 10  # once an optimizer step, not once a pass
    for ours, theirs in zip(large.learner.raw_model.parameters(), small.learner.raw_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [line["loss"] for line in metrics(large)] == pytest.approx([line["loss"] for line in metrics(small)], 1e-3)


def test_the_rate_warms_up_and_reaches_its_end_under_accumulation(make_trainer):
    trainer = make_trainer(log_every=1, batch_size=2, gradient_accumulation_steps=3, learning_rate=1e-3)
    trainer.train()
    rates = [line["learning_rate"] for line in metrics(trainer)]
    assert len(rates) == 10
    assert rates[0] == pytest.approx(0.5e-3)
    assert rates[-1] == pytest.approx(1e-3 * 0.0245, rel=0.01)  # (1 + cos(0.9 pi)) / 2


def test_a_budget_in_minutes_ends_the_run_with_a_rate_that_has_followed_the_clock(make_trainer):
    trainer = make_trainer(max_steps=None, max_minutes=0.1, log_every=1)
    trainer.train()
    assert trainer.budget.seconds >= 6
    *_, earlier, before, last = metrics(trainer)
    assert last["learning_rate"] < before["learning_rate"]
    spent = earlier["seconds"] / 6  # by then; the last step began later
    assert last["learning_rate"] <= trainer.training.learning_rate * (1 + math.cos(math.pi * spent)) / 2


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_other_prediction_types_train_too(make_trainer, scheduler, prediction_type):
    scheduler.register_to_config(prediction_type=prediction_type)
    trainer = make_trainer(max_steps=40, log_every=20, batch_size=32)
    trainer.train()
    assert metrics(trainer)[-1]["loss"] < metrics(trainer)[0]["loss"]
    saved = load_pipeline(trainer.folder.pipeline)
    assert saved.scheduler.config.prediction_type == prediction_type


def test_a_network_with_dropout_trains_alike_for_one_seed(make_trainer):
    one, again = make_trainer("one", model=tiny_unet(dropout=0.3)), make_trainer("again", model=tiny_unet(dropout=0.3))
    plain = make_trainer("plain")
    one.train()
    torch.rand(3)
    again.train()
    plain.train()
    assert equal(one, again)
    assert not equal(one, plain)


def test_a_compiled_network_trains_to_the_same_weights_and_can_be_resumed(make_trainer):
    model = lambda: tiny_unet(block_out_channels=(16,), attention_levels=())  # noqa: E731
    plain = make_trainer("plain", model=model())
    plain.train()
    another_process()
    train_four_steps(make_trainer("compiled", model=model(), compile=True))
    another_process()
    compiled = make_trainer("compiled", model=model(), compile=True, resume="latest")
    assert compiled.step == 4
    assert is_compiled_module(compiled.learner.model)
    compiled.train()
    saved = load_pipeline(compiled.folder.pipeline).unet
    for ours, theirs in zip(saved.parameters(), load_pipeline(plain.folder.pipeline).unet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)


def test_gradient_checkpointing_trains_to_the_same_weights(make_trainer):
    plain, saving = make_trainer("plain"), make_trainer("saving", gradient_checkpointing=True)
    for trainer in (plain, saving):
        trainer.train()
    for ours, theirs in zip(weights(plain), weights(saving), strict=True):
        torch.testing.assert_close(ours, theirs)


def poison(trainer, steps):
    """Let the gradient be no number in these steps, counted from 1."""
    learner = trainer.learner

    def hook(gradient):
        return gradient * math.nan if learner.step + 1 in steps else gradient

    next(learner.raw_model.parameters()).register_hook(hook)


@pytest.mark.parametrize("network", [tiny_unet, tiny_basic_unet])  # the second has batch norms' statistics
def test_a_gradient_that_is_not_finite_skips_its_step(make_trainer, caplog, network):
    trainer, before = make_trainer(model=network(), log_every=1), []
    poison(trainer, {3})
    learn = trainer.learner._learn

    def watched():
        before.append([tensor.clone() for tensor in weights(trainer)])
        return learn()

    trainer.learner._learn = watched
    trainer.train()
    changed = [
        any(not torch.equal(one, other) for one, other in zip(earlier, later, strict=True))
        for earlier, later in zip(before, [*before[1:], weights(trainer)], strict=True)
    ]
    assert changed == [True, True, False, *[True] * 7]
    assert [line["skipped_steps"] for line in metrics(trainer)] == [0, 0, 1, *[0] * 7]
    assert "gradient_norm" not in metrics(trainer)[2]
    assert "step 3 is skipped: its gradient is not finite" in caplog.text


def test_a_step_that_a_loss_scaler_skips_is_counted_and_not_averaged(make_trainer, monkeypatch):
    trainer = make_trainer(log_every=1, max_steps=3)
    poison(trainer, {2})
    average, optimizer = trainer.learner.ema, trainer.learner.optimizers[0]
    stepped = []
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    monkeypatch.setattr(optimizer, "step", lambda: stepped.append(trainer.step))  # in which the scaler decides
    trainer.train()
    assert stepped == [0, 1, 2]
    assert [line["skipped_steps"] for line in metrics(trainer)] == [0, 1, 0]
    assert average.optimization_step == 2


def test_gradients_that_stay_infinite_stop_the_run_with_the_last_good_checkpoint(make_trainer):
    trainer = make_trainer(max_skipped_steps=4, checkpoint_every=1)
    poison(trainer, range(4, 99))
    message = r"not finite in 4 steps up to 7; last good checkpoint: .*/step-00000003; resume .*learning_rate or in"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert not trainer.folder.pipeline.exists()


def test_a_loss_that_is_not_finite_stops_the_run(make_trainer):
    trainer = make_trainer(learning_rate=1e30, warmup_steps=1, max_skipped_steps=3)
    with pytest.raises(FloatingPointError, match=r"not finite in 3 steps up to \d; last good checkpoint: none yet"):
        trainer.train()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 0), (signal.SIGUSR1, 0)])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(make_trainer, capsys, number, status):
    whole = make_trainer("whole")
    whole.train()
    another_process()
    stopped = make_trainer()
    learn = stopped.learner._learn

    def interrupted():
        if stopped.step == 3:
            os.kill(os.getpid(), number)
        return learn()

    stopped.learner._learn = interrupted
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        stopped.train()
    assert ended.value.code == status
    assert signal.getsignal(number) == before
    assert f"stopped by {number.name}; --resume latest goes on from step 4" in capsys.readouterr().out
    another_process()
    resumed = make_trainer(resume="latest")
    assert resumed.step == 4
    resumed.train()
    assert equal(whole, resumed)
    assert [line["step"] for line in metrics(resumed)] == [4, 5, 10]


def test_a_signal_while_the_pipeline_is_saved_lets_it_be_saved(make_trainer):
    trainer = make_trainer(tracking="offline")
    make = trainer.pipeline

    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        return make()

    trainer.pipeline = interrupted
    assert "wandb sync" in trainer.train()
    assert trainer.finished
    assert wandb.run is None


@pytest.mark.parametrize("first", [[], [signal.SIGUSR1], [signal.SIGTERM]])
def test_a_second_interruption_stops_at_once(make_trainer, first):
    trainer, sent = make_trainer(), []

    def impatient():
        for number in first:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same, from a launcher
        time.sleep(SAME_SIGNAL)
        sent.append(time.sleep(0.1))
        os.kill(os.getpid(), signal.SIGINT)

    trainer.learner._learn = impatient
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert sent
    assert not trainer.folder.checkpoints.exists()


@contextmanager
def full_disk(free):
    """Let no file grow beyond `free` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("free", [0, 2_000, 100_000])
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(make_trainer, caplog, free):
    whole = make_trainer("whole", checkpoint_every=2, checkpoints_kept=9, sample_every=4, log_every=1)
    whole.train()
    another_process()
    trainer = make_trainer(checkpoint_every=2, checkpoints_kept=9, sample_every=4, log_every=1)
    after_step = trainer._after_step

    def full_at_four(*arguments):
        with full_disk(free) if trainer.step == 4 else nullcontext():
            after_step(*arguments)

    trainer._after_step = full_at_four
    trainer.train()
    assert re.search(r"no checkpoint of step 4 \(.*\); the last is .*/step-00000002; going on", caplog.text)
    names = sorted(path.name for path in trainer.folder.checkpoints.iterdir())
    assert names == [f"step-{step:08d}" for step in (2, 6, 8, 10)]
    for path in trainer.folder.checkpoints.iterdir():
        check_whole(path)
    assert [line["step"] for line in metrics(trainer)] == [*range(1, 11)]
    assert equal(whole, trainer)


def test_a_checkpoint_every_so_many_steps_is_kept_for_good(make_trainer):
    trainer = make_trainer(checkpoint_every=1, checkpoints_kept=2, keep_every=3)
    trainer.train()
    kept = sorted(int(path.name.removeprefix("step-")) for path in trainer.folder.checkpoints.iterdir())
    assert kept == [3, 6, 9, 10]
    with pytest.raises(ValueError, match="keep_every 3 is not divisible by 2"):
        make_trainer(checkpoint_every=2, keep_every=3)


def test_folders_of_other_names_are_a_users_own(make_trainer):
    first = make_trainer(max_steps=4, checkpoint_every=2)
    first.train()
    names = ["step-best", "step-00000002-notes", "step-00000001.keep"]
    for name in names:
        shutil.copytree(first.folder.checkpoints / "step-00000002", first.folder.checkpoints / name)
    second = make_trainer(max_steps=8, checkpoint_every=1, checkpoints_kept=1, resume="latest")
    assert second.step == 4
    second.train()
    assert sorted(path.name for path in first.folder.checkpoints.iterdir()) == sorted([*names, "step-00000008"])


@pytest.mark.parametrize("name", ["samples", "checkpoints", "pipeline", "metrics.jsonl", "config.yaml"])
def test_a_link_out_of_the_run_folder_is_refused(make_trainer, tmp_path, name):
    make_trainer(max_steps=2).train()
    (tmp_path / "run" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"run/{name} is a link; a run writes into its own folder only"):
        make_trainer(max_steps=4, resume="latest")


def test_a_folder_that_holds_a_run_is_not_touched(make_trainer):
    trainer = make_trainer()
    trainer.train()
    before = {path: path.stat().st_mtime_ns for path in trainer.folder.path.rglob("*")}
    with pytest.raises(FileExistsError, match="holds a run already.*--resume latest"):
        make_trainer()
    assert before == {path: path.stat().st_mtime_ns for path in trainer.folder.path.rglob("*")}


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (lambda: tiny_unet(block_out_channels=(32, 32)), r"block_out_channels \[16, 32\], not \[32, 32\]"),
        (tiny_basic_unet, "denoiser.unet.UNet, not denoiser.basic_unet.BasicUNet"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(make_trainer, model, difference):
    make_trainer().train()
    with pytest.raises(ValueError, match=f"another architecture: {difference}"):
        make_trainer(model=model(), resume="latest")


def test_a_checkpoint_of_another_noise_schedule_is_refused(make_trainer, scheduler):
    make_trainer().train()
    scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="another noise schedule: prediction_type epsilon, not v_prediction"):
        make_trainer(resume="latest")


def altered(trainer, change):
    """Change the state of a run's last checkpoint, and sign it anew."""
    path = trainer.last_checkpoint / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    change(state)
    path.write_text(json.dumps(state), encoding="utf-8")
    sign(path.parent)


def test_a_checkpoint_of_an_earlier_version_resumes_unless_its_network_or_optimizer_is_gone(make_trainer):
    first = make_trainer()
    first.train()
    altered(first, lambda state: state.update(optimizer={"name": "adamw"}, distillation={}))
    altered(first, lambda state: state["model"]["init_args"].update(middle_blocks=0, second_kernel_size=3))
    assert make_trainer(resume="latest").step == 10
    altered(first, lambda state: state["model"]["init_args"].update(second_kernel_size=1))
    with pytest.raises(ValueError, match="second_kernel_size is 1, a removed option; commit e7d8e90"):
        make_trainer(resume="latest")
    altered(first, lambda state: state["model"]["init_args"].update(second_kernel_size=3))
    altered(first, lambda state: state.update(optimizer={"name": "muon"}))
    with pytest.raises(ValueError, match="optimizer is muon, a removed option; commit e7d8e90"):
        make_trainer(resume="latest")


def test_a_checkpoint_of_another_version_is_not_called_damaged(make_trainer):
    first = make_trainer()
    first.train()
    altered(first, lambda state: state.pop("ema_steps"))
    with pytest.raises(ValueError, match="lacks ema_steps: another version of this package wrote it"):
        make_trainer(resume="latest")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"batch_size": 4}, {"batch_size": 2, "gradient_accumulation_steps": 2}),
        ({"channels_last": False}, {"channels_last": True}),
    ],
)
def test_a_run_that_goes_on_in_other_passes_or_another_layout_ends_alike(make_trainer, before, after):
    options = {"max_steps": 7, "checkpoint_every": 3, "checkpoints_kept": 3, "learning_rate": 1e-3}
    whole = make_trainer(**options, **before)
    whole.train()
    for step in (6, 7):
        shutil.rmtree(whole.folder.checkpoints / f"step-{step:08d}")
    resumed = make_trainer(**options, resume="latest", **after)
    assert resumed.step == 3
    resumed.train()
    for weight, other in zip(whole.learner.raw_model.parameters(), resumed.learner.raw_model.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-4, atol=1e-5)


def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(make_trainer):
    first = make_trainer(max_steps=2)
    first.train()
    shutil.rmtree(first.folder.checkpoints)
    with pytest.raises(FileExistsError, match="holds a run that has ended"):
        make_trainer(max_steps=4, resume="latest")
    assert first.folder.pipeline.exists()
    assert metrics(first)


def test_a_line_of_figures_without_its_end_stays_apart_from_the_next(make_trainer):
    first = make_trainer(max_steps=2, log_every=1)
    first.train()
    path = first.folder.metrics
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    make_trainer(max_steps=4, log_every=1, resume="latest").train()
    assert [line["step"] for line in metrics(first)] == [1, 2, 3, 4]


@pytest.mark.parametrize("step", [torch.ones(3), torch.ones(0), torch.ones(1).to_sparse()])
def test_moments_that_a_stranger_made_are_refused_or_copied(make_trainer, step):
    first = make_trainer(max_steps=2)
    first.train()
    path = first.last_checkpoint / "optimizer.bin"
    state = torch.load(path, weights_only=True)
    for moments in state["state"].values():
        moments["exp_avg"] = torch.ones(1).expand(moments["exp_avg"].shape)  # one number in memory
    torch.save(state, path)
    sign(path.parent)
    make_trainer(max_steps=3, resume="latest").learner.take_step(0.5)
    state["state"][0]["step"] = step
    torch.save(state, path)
    sign(path.parent)
    with pytest.raises(ValueError, match="is damaged .*step is not one number"):
        make_trainer(max_steps=3, resume="latest")


@pytest.mark.parametrize("part", ["model", "scheduler", "optimizer", "distillation", "draws"])
def test_settings_of_another_kind_in_a_signed_checkpoint_are_refused(make_trainer, part):
    first = make_trainer(max_steps=2)
    first.train()
    path = first.last_checkpoint / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, part: {"init_args": 3}}), encoding="utf-8")
    sign(path.parent)
    with pytest.raises(ValueError, match="step-00000002 is damaged .*values of another kind"):
        make_trainer(resume="latest")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[
            (name, lambda path: path.write_bytes(path.read_bytes()[:100]))
            for name in ("model.safetensors", "optimizer.bin", "ema.safetensors", "state.json", MANIFEST)
        ],
        ("ema.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")),
        (MANIFEST, lambda path: path.write_text("{}", encoding="utf-8")),
        ("state.json", lambda path: path.unlink()),
        ("pytorch_model.bin", lambda path: path.write_text("of a stranger", encoding="utf-8")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_that_is_whole(make_trainer, caplog, name, damage):
    first = make_trainer(max_steps=6, checkpoint_every=2, checkpoints_kept=3)
    first.train()
    damage(first.last_checkpoint / name)
    another_process()
    second = make_trainer(max_steps=6, checkpoint_every=2, resume="latest")
    assert second.step == 4
    assert "skipped: " in caplog.text
    assert "step-00000006 is damaged (" in caplog.text
    with pytest.raises((ValueError, FileNotFoundError), match="step-00000006 is (damaged|not a checkpoint)"):
        make_trainer(max_steps=6, resume=str(first.last_checkpoint))
    second.train()
    assert equal(first, second)
    check_whole(first.last_checkpoint)


def test_where_no_checkpoint_is_whole_nothing_starts_over_them(make_trainer):
    first = make_trainer(max_steps=4, checkpoint_every=2)
    first.train()
    for path in first.folder.checkpoints.iterdir():
        (path / "ema.safetensors").unlink()
    with pytest.raises(ValueError, match="none of the checkpoints in .* is whole; start anew in another output_dir"):
        make_trainer(max_steps=4, resume="latest")


def test_going_on_from_an_older_checkpoint_takes_a_folder_without_later_ones(make_trainer):
    first = make_trainer(checkpoint_every=4, checkpoints_kept=9)
    first.train()
    older = str(first.folder.checkpoints / "step-00000004")
    with pytest.raises(FileExistsError, match=r"holds later checkpoints than step-00000004, up to step-00000010"):
        make_trainer(resume=older)
    another = make_trainer("another", resume=older)
    assert another.step == 4
    another.train()
    with pytest.raises(FileExistsError, match="another holds a run already"):
        make_trainer("another", resume=older)
    shutil.rmtree(first.folder.checkpoints / "step-00000008")
    shutil.rmtree(first.folder.checkpoints / "step-00000010")
    assert make_trainer(resume=older).step == 4


def test_a_path_that_is_no_checkpoint_is_refused(make_trainer, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a checkpoint"):
        make_trainer(resume=str(tmp_path))
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit_the_model_are_refused(make_trainer, some_images, tmp_path):
    for model in (tiny_unet(sample_size=32), tiny_unet(in_channels=3), tiny_unet(num_class_embeds=7)):
        with pytest.raises(ValueError, match=r"the model (wants|has num_class_embeds 7)"):
            make_trainer(model=model)
    assert not (tmp_path / "run").exists()


def test_the_config_that_a_run_leaves_says_everything(make_trainer, read_config):
    trainer = make_trainer(learning_rate=5e-4)
    trainer.train()
    saved = read_config(trainer)
    assert saved["training"]["learning_rate"] == 5e-4
    assert saved["model"]["class_path"] == "denoiser.unet.UNet"
    assert UNet(**saved["model"]["init_args"]).num_parameters() == trainer.learner.raw_model.num_parameters()
    assert saved["scheduler"]["num_train_timesteps"] == 1000


def test_only_images_of_the_set_it_is_given_are_seen(make_trainer, some_images):
    seen = []

    class Recording(ImageSet):
        def to(self, device):
            return self

        def batch(self, indices, device=None):
            seen.append(indices)
            return super().batch(indices, device)

    make_trainer(images=Recording(some_images.images, some_images.labels, some_images.class_names)).train()
    assert 0 <= torch.cat(seen).min() <= torch.cat(seen).max() < len(some_images)
    assert len(torch.cat(seen).unique()) == 176  # ten steps of 16 and the next, and none twice within an epoch


def test_evaluations_are_logged_at_their_interval_and_at_the_end(make_trainer, held_out):
    trainer = make_trainer(held_out=held_out, evaluate_every=4, log_every=5, evaluation_images=100)
    trainer.train()
    evaluated = [line["step"] for line in metrics(trainer) if "held_out_loss" in line]
    assert evaluated == [4, 8, 10]
    assert [line["step"] for line in metrics(trainer)] == [4, 5, 8, 10]
    last = metrics(trainer)[-1]
    assert last["frechet"] > 5 * last["frechet_floor"]  # after ten steps
    assert last["evaluation_images"] == 100
    assert last["frechet_space"] == "judge"
    assert last["second_frechet"] > 5 * last["second_frechet_floor"]
    assert last["second_frechet_space"] == "second_judge"
    card = (trainer.folder.pipeline / "README.md").read_text(encoding="utf-8")
    assert "| held-out loss |" in card
    for which in ("first", "second"):
        assert f"| Fréchet distance of 100 images to training images, in the {which} judge's features |" in card


def test_evaluations_change_nothing_in_the_training(make_trainer, held_out):
    plain, watched = (
        make_trainer("plain"),
        make_trainer("watched", held_out=held_out, evaluate_every=3, evaluation_images=100),
    )
    for trainer in (plain, watched):
        trainer.train()
    assert equal(plain, watched)


def test_evaluations_of_too_few_images_are_refused(make_trainer, held_out):
    with pytest.raises(ValueError, match="evaluation_images is 99; it must be from 100"):
        make_trainer(held_out=held_out, evaluation_images=99)


def test_a_finished_checkpoint_taken_elsewhere_gives_its_pipeline(make_trainer):
    first = make_trainer()
    first.train()
    second = make_trainer("another", resume=str(first.last_checkpoint))
    second.train()
    assert (second.folder.pipeline / "samples.png").is_file()
    assert equal(first, second)


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on_and_changes_nothing(make_trainer):
    first = make_trainer(checkpoint_every=5)
    with first.folder.held():
        before = {path: path.read_bytes() for path in first.folder.path.rglob("*") if path.is_file()}
        for resume in (None, "latest"):
            with pytest.raises(
                FileExistsError, match="another run is writing in .*; wait for its end, or give another"
            ):
                make_trainer(resume=resume)
    assert {path: path.read_bytes() for path in first.folder.path.rglob("*") if path.is_file()} == before
    first.train()
    another_process()
    assert make_trainer(resume="latest").finished


def test_a_run_that_another_has_overtaken_since_it_was_made_is_refused(make_trainer):
    first, second = make_trainer(), make_trainer()
    first.train()
    with pytest.raises(FileExistsError, match="another run has written in .*; start again with --resume latest"):
        second.train()


def test_a_killed_run_leaves_no_lock_behind(make_trainer, tmp_path):
    (tmp_path / "run").mkdir()
    hold = "import sys, pathlib, time; from denoiser.files import locked; f = locked(pathlib.Path(sys.argv[1])); "
    hold += "print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run" / ".lock"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(FileExistsError, match="another run is writing"):
        make_trainer()
    holder.kill()
    holder.wait()
    make_trainer().train()


def test_a_network_without_a_null_label_trains_with_every_label_kept(make_trainer):
    model = UNet2DModel(
        *(16, 1, 1),
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=10,
    )
    trainer = make_trainer(model=model, label_dropout=0.0, max_steps=2)
    trainer.train()
    assert load_pipeline(trainer.folder.pipeline).num_classes == 10


def test_numbers_of_numpy_in_network_and_scheduler_train_and_are_written(make_trainer):
    scheduler = DDPMScheduler(
        num_train_timesteps=np.int64(100), beta_start=np.float64(1e-3), trained_betas=np.linspace(1e-3, 0.05, 100)
    )
    with pytest.raises(ValueError, match="beta_start is 0.001, and changes nothing"):
        make_trainer(scheduler=scheduler)
    scheduler = DDPMScheduler(num_train_timesteps=np.int64(100), trained_betas=np.linspace(1e-3, 0.05, 100))
    trainer = make_trainer(model=UNet(sample_size=np.int64(16), num_class_embeds=np.int64(10)), scheduler=scheduler)
    trainer.train()
    assert load_pipeline(trainer.folder.pipeline).scheduler.config.num_train_timesteps == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": DDIMScheduler()}, "the scheduler is a DDIMScheduler; a training takes a DDPMScheduler"),
        ({"model": UNet2DModel(16, 1, 1, class_embed_type="timestep")}, "class_embed_type is timestep"),
        ({"loss_weighting": "noise"}, "loss_weighting is 'noise'; it is one of prediction, min_snr"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_construction(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_nothing_that_a_run_shares_tells_where_it_was_made(make_trainer, tmp_path, monkeypatch):
    tiny_unet().save_pretrained(tmp_path / "before")
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(model=UNet.from_pretrained(tmp_path / "before").train())
    trainer.train()
    told = [str(tmp_path), str(Path.home()), socket.gethostname(), getpass.getuser()]
    shared = [path for path in trainer.folder.path.rglob("*") if path.is_file()]
    assert {"README.md", "model_index.json", "config.json", "state.json"} <= {path.name for path in shared}
    for path in shared:
        content = path.read_bytes().replace(f"output_dir: {trainer.config.output_dir}".encode(), b"")  # which was typed
        assert [word for word in told if len(word) > 4 and word.encode() in content] == []


def test_images_of_two_channels_are_shown_channel_beside_channel(make_trainer, some_images):
    both = torch.cat([some_images.images, 255 - some_images.images], dim=1)
    images = ImageSet(both, some_images.labels, some_images.class_names)
    trainer = make_trainer(model=tiny_unet(in_channels=2, out_channels=2), images=images, max_steps=1)
    trainer.train()
    grids = (trainer.folder.grid(1), trainer.folder.pipeline / "samples.png")
    for path in grids:
        with Image.open(path) as grid:
            assert grid.mode == "RGB"
            assert grid.size == (2 * (2 * 64 + 2) + 2, 2 * (64 + 2) + 2)


def test_a_network_that_draws_no_numbers_still_leaves_its_pipeline(make_trainer, held_out, caplog):
    trainer = make_trainer(held_out=held_out, max_steps=2, evaluation_images=100, sample_every=1)
    trainer.learner.ema.shadow_params[0].fill_(math.nan)
    trainer.train()
    assert trainer.finished
    for what in ("the grid ", "an evaluation", "the model card"):
        lines = [line for line in caplog.messages if line.startswith(what)]
        assert lines
        assert all("not finite" in line and line.endswith("); going on") for line in lines)
    assert "frechet" not in metrics(trainer)[-1]


def test_a_place_where_no_grid_can_be_written_does_not_end_a_run(make_trainer, caplog):
    trainer = make_trainer(max_steps=2, sample_every=1)
    trainer.folder.grid(0).parent.write_text("in the way", encoding="utf-8")
    trainer.train()
    assert trainer.finished
    assert sum("the grid" in line and line.endswith("); going on") for line in caplog.messages) == 2
