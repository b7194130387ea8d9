"""Runs that are killed, and runs whose writes fail: what they leave, and what they come to when resumed.

`make test` tries a few of each, `make soak` (with SOAK=1) all of them; each says by its seed which.
"""

import errno
import os
import random
import shutil
import time

import pytest

from tests.faults.runs import SOAK, build_library, check_checkpoints, fresh, outcome, start, start_server
from tests.reliability import record

SEED = int(os.environ.get("SOAK_SEED", "0"))
KILLS = 40 if SOAK else 3  # of each kind of run
KINDS = {
    "float32": {},
    "bf16": {"training.mixed_precision": "bf16"},
    "accumulated": {"training.gradient_accumulation_steps": 2, "training.batch_size": 16},
}
ERRORS = {"full disk": errno.ENOSPC, "broken disk": errno.EIO, "no permission": errno.EACCES, "clock set back": 0}
SHORT = {"training.max_steps": 6, "training.checkpoint_every": 2, "training.sample_every": 3}
SHORT |= {"training.checkpoints_kept": 9}
FEW = 2  # writes of each error that `make test` lets fail


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """What starts runs, whose writes can be made to fail where there is a compiler."""
    return start_server(build_library(tmp_path_factory.mktemp("library")) if shutil.which("gcc") else None)


@pytest.mark.parametrize("kind", KINDS if SOAK else ["float32", "bf16"])
def test_a_run_that_is_killed_and_resumed_ends_as_if_it_had_not_been(context, tmp_path, kind):
    options, log, choice = KINDS[kind], tmp_path / "log", random.Random(f"{SEED} {kind}")
    started = time.perf_counter()
    whole = start(context, tmp_path / "whole", log, **options)
    whole.join()
    seconds = time.perf_counter() - started
    assert whole.exitcode == 0, log.read_text()
    expected = outcome(tmp_path / "whole")
    kills = rounds = 0
    while kills < KILLS:
        run_dir = fresh(tmp_path / "killed")
        while True:
            process = start(context, run_dir, log, **options)
            process.join(choice.uniform(0, seconds) if kills < KILLS else None)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            check_checkpoints(run_dir)
        assert process.exitcode == 0, (kind, SEED, kills, log.read_text())
        assert outcome(run_dir) == expected, (kind, SEED, kills)
        rounds += 1
    print(f"{kind}: seed {SEED}, {kills} kills in {rounds} runs, each as uninterrupted")
    record("kills", kind, kills, f"{rounds} of {rounds}")


@pytest.fixture(scope="module")
def unfailing(context, tmp_path_factory):
    """What a short run without any fault comes to."""
    folder = tmp_path_factory.mktemp("failing")
    whole = start(context, folder / "whole", folder / "log", **SHORT)
    whole.join()
    assert whole.exitcode == 0, (folder / "log").read_text()
    return outcome(folder / "whole")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build what lets writes fail")
@pytest.mark.parametrize("error", ERRORS)
def test_a_write_that_fails_costs_no_older_checkpoint(context, unfailing, tmp_path, error):
    choice, log, told = random.Random(f"{SEED} {error}"), tmp_path / "log", tmp_path / "told"
    at = hits = missing = 0
    while SOAK or hits < FEW:
        at += 1 if SOAK else choice.randint(1, 60)
        told.unlink(missing_ok=True)
        run_dir = fresh(tmp_path / "run")
        fault = {"FAULT_UNDER": run_dir, "FAULT_AT": at, "FAULT_ERRNO": ERRORS[error], "FAULT_TOLD": told}
        process = start(context, run_dir, log, {name: str(value) for name, value in fault.items()}, **SHORT)
        process.join()
        where = (error, at, log.read_text())
        if not told.exists():  # the run has no more writes than that
            break
        hits += 1
        assert process.exitcode in (0, 2), where
        assert "Traceback" not in log.read_text(), where
        check_checkpoints(run_dir)
        if process.exitcode == 2:
            process = start(context, run_dir, log, **SHORT)
            process.join()
            assert process.exitcode == 0, (*where, log.read_text())
        found = outcome(run_dir)
        lost = {name for name in unfailing if name not in found}
        assert all(found[name] == unfailing[name] for name in found), (*where, lost)
        missing += any(name.startswith("checkpoints/") for name in lost)
        assert len({name.rsplit("/", 1)[0] for name in lost}) < 2, (*where, lost)  # what could not be written
        assert all(name.startswith(("samples/", "checkpoints/")) for name in lost), (*where, lost)
    assert hits
    print(f"{error}: seed {SEED}, {hits} writes failed")
    record("faults", error, hits, missing)
