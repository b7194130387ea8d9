"""Runs that are killed, and runs whose writes fail: what they leave, and what they come to when resumed.

`make test` tries a few of each, `make soak` (with SOAK=1) all of them; each says by its seed which.
"""

import errno
import os
import random
import shutil
import time

import pytest
import torch
from accelerate.utils import is_torch_version
from safetensors.torch import load

from pipelines.training.checkpoint import list_checkpoints
from tests.faults.runs import SOAK, Run, build_library, check_checkpoints, fresh, outcome, start_server
from tests.reliability import record

SEED = int(os.environ.get("SOAK_SEED", "0"))
KILLS = 25 if SOAK else 3  # of each kind of run
TWO = {"processes": 2, "training.batch_size": 16}
KINDS = {
    "float32": {},
    "bf16": {"training.mixed_precision": "bf16"},
    "float32, accumulated": {"training.gradient_accumulation_steps": 2, "training.batch_size": 16},
    "float32, two processes": TWO,
    "bf16, accumulated, two processes": {
        **{"processes": 2, "training.batch_size": 8, "training.gradient_accumulation_steps": 2},
        "training.mixed_precision": "bf16",
    },
}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": 2, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
FSDP |= {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
ERRORS = {
    "full disk": {"FAULT_ERRNO": errno.ENOSPC},
    "full disk from there on": {"FAULT_ERRNO": errno.ENOSPC, "FAULT_LASTS": 1},
    "broken disk": {"FAULT_ERRNO": errno.EIO},
    "no permission": {"FAULT_ERRNO": errno.EACCES},
    "clock set back": {"FAULT_ERRNO": 0},
}
SHORT = {"training.max_steps": 6, "training.checkpoint_every": 2, "training.sample_every": 3}
KEPT = "training.checkpoints_kept"
FEW, WRITES = 2, 280  # writes of each error that `make test` lets fail, of about as many


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """What starts runs, whose writes can be made to fail where there is a compiler."""
    return start_server(build_library(tmp_path_factory.mktemp("library")) if shutil.which("gcc") else None)


@pytest.mark.parametrize(
    "kind", KINDS if SOAK else ["float32", pytest.param("bf16, accumulated, two processes", marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_and_resumed_ends_as_if_it_had_not_been(context, tmp_path, kind):
    options, log, choice = KINDS[kind], tmp_path / "log", random.Random(f"{SEED} {kind}")
    started = time.perf_counter()
    assert Run(context, tmp_path / "whole", log, **options).ended() == 0, log.read_text(encoding="utf-8")
    seconds = time.perf_counter() - started
    expected = outcome(tmp_path / "whole")
    kills = rounds = 0
    while kills < KILLS:
        run_dir = fresh(tmp_path / "killed")
        while True:
            run = Run(context, run_dir, log, **options)
            status = run.ended(choice.uniform(0, seconds) if kills < KILLS else None)
            if status is not None:
                break
            run.kill()
            kills += 1
            check_checkpoints(run_dir)
        assert status == 0, (kind, SEED, kills, log.read_text(encoding="utf-8"))
        assert outcome(run_dir) == expected, (kind, SEED, kills)
        rounds += 1
    print(f"{kind}: seed {SEED}, {kills} kills in {rounds} runs, each as uninterrupted")
    record("kills", kind, SEED, kills, f"{rounds} of {rounds}")


@pytest.fixture(scope="module")
def unfailing(context, tmp_path_factory):
    """What a short run without any fault comes to, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("failing")
    run = Run(context, folder / "whole", folder / "log", **SHORT, **{KEPT: 3})
    assert run.ended() == 0, (folder / "log").read_text(encoding="utf-8")
    return outcome(folder / "whole")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build what lets writes fail")
@pytest.mark.parametrize("error", ERRORS)
def test_a_write_that_fails_costs_no_older_checkpoint(context, unfailing, tmp_path, error):
    choice, log, told = random.Random(f"{SEED} {error}"), tmp_path / "log", tmp_path / "told"
    options = {**SHORT, KEPT: 2}
    at = hits = missing = 0
    while SOAK or hits < FEW:
        at = at + 1 if SOAK else choice.randint(1, WRITES)
        told.unlink(missing_ok=True)
        run_dir = fresh(tmp_path / "run")
        fault = {"FAULT_UNDER": run_dir, "FAULT_AT": at, "FAULT_TOLD": told, **ERRORS[error]}
        status = Run(context, run_dir, log, fault, **options).ended()
        where = (error, at, log.read_text(encoding="utf-8"))
        if not told.exists():  # the run has no more writes than that
            break
        hits += 1
        assert status in (0, 2), where
        assert "Traceback" not in log.read_text(encoding="utf-8"), where
        check_checkpoints(run_dir)
        if status == 2:
            assert Run(context, run_dir, log, **options).ended() == 0, (*where, log.read_text(encoding="utf-8"))
        found = outcome(run_dir)
        lost = {name for name in unfailing if name not in found}
        assert all(found[name] == unfailing[name] for name in found), (*where, lost)
        assert all(name.startswith(("samples/", "checkpoints/")) for name in lost), (*where, lost)
        assert sum(name.startswith("samples/") for name in lost) < 2, (*where, lost)
        kept = [path.name for path in list_checkpoints(run_dir / "checkpoints")]
        assert len(kept) in (2, 3), (*where, kept)  # 3 where the oldest could not be deleted
        missing += kept[-2:] != ["step-00000004", "step-00000006"]
    assert hits
    print(f"{error}: seed {SEED}, {hits} writes failed")
    record("faults", error, SEED, hits, missing)


def test_the_averages_of_all_processes_are_equal(context, tmp_path):
    run = Run(context, tmp_path / "run", tmp_path / "log", {"AVERAGES": tmp_path}, **SHORT, **TWO)
    assert run.ended(100) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    first, second = (load((tmp_path / f"{rank}.safetensors").read_bytes()) for rank in "01")
    assert len(first) > 10
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.skipif(is_torch_version("<", "2.11"), reason="refused")
def test_weights_that_are_split_are_trained_saved_and_resumed_as_whole_ones_are(context, tmp_path):
    plain, log = {**SHORT, **TWO, "training.channels_last": False}, tmp_path / "log"
    assert Run(context, tmp_path / "whole", log, **plain).ended(100) == 0, log.read_text(encoding="utf-8")
    assert Run(context, tmp_path / "split", log, FSDP, **plain).ended(100) == 0, log.read_text(encoding="utf-8")
    whole, split = (outcome(tmp_path / name) for name in ("whole", "split"))
    for ours, theirs in zip(split["metrics.jsonl"], whole["metrics.jsonl"], strict=True):
        figures, expected = ({key: line[key] for key in line if key != "frechet_space"} for line in (ours, theirs))
        assert figures == pytest.approx(expected, rel=1e-4)
    for name in ("checkpoints/step-00000006/ema.safetensors", "pipeline/unet/diffusion_pytorch_model.safetensors"):
        weights = [load(run[name]) for run in (split, whole)]
        assert weights[0].keys() == weights[1].keys()
        for key, weight in weights[1].items():
            torch.testing.assert_close(weights[0][key], weight, rtol=1e-4, atol=1e-5)
    for path in ("pipeline/model_index.json", "pipeline/unet/config.json"):
        assert "FSDP" not in (tmp_path / "split" / path).read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "split" / "checkpoints" / "step-00000006")
    assert Run(context, tmp_path / "split", log, FSDP, **plain).ended(100) == 0, log.read_text(encoding="utf-8")
    assert "from step 4" in log.read_text(encoding="utf-8")
    assert outcome(tmp_path / "split") == split


@pytest.mark.skipif(is_torch_version(">=", "2.11"), reason="works")
def test_weights_are_not_split_where_their_gradients_would_be_summed(context, tmp_path):
    log, options = tmp_path / "log", {**SHORT, **TWO, "training.channels_last": False}
    assert Run(context, tmp_path / "run", log, FSDP, **options).ended(60) == 2, log.read_text(encoding="utf-8")
    assert "FSDP on CPUs needs PyTorch 2.11" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "environment", "why"),
    [
        ({"training.channels_last": True}, {}, "training.channels_last"),
        ({"training.channels_last": False}, {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "FULL_STATE_DICT"),
        ({"training.channels_last": False}, {"FSDP_VERSION": 1}, "fsdp_version"),
    ],
)
def test_weights_that_cannot_be_split_so_are_told_in_one_line(context, tmp_path, options, environment, why):
    log = tmp_path / "log"
    run = Run(context, tmp_path / "run", log, {**FSDP, **environment}, **SHORT, **TWO, **options)
    assert run.ended(60) == 2, log.read_text(encoding="utf-8")
    assert why in log.read_text(encoding="utf-8")
    assert "Traceback" not in log.read_text(encoding="utf-8")
