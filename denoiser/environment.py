"""Environment variables of a run: honoured, ignored with one line, or refused (docs/environment.md)."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import str_to_bool

# Variables that a launcher sets together, by family, the last of which may be missing. If others are missing, the rest
# is left over from elsewhere.
LAUNCHES = {
    "torch": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"),
    "Open MPI": tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "MVAPICH": tuple(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
FSDP = "ACCELERATE_USE_FSDP"
SWITCHES = ("ACCELERATE_USE_CPU", FSDP, "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "FORK_LAUNCHED")
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism other than of data",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
PRECISIONS = ("no", "bf16", "fp16")
# Values of the launcher where nobody asked for others.
COMPILING = {
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}
NOT_COMPILING = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
PRECISION, BACKEND, DEVICE = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_TORCH_DEVICE"
FP8 = "ACCELERATE_FP8_BACKEND"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TF32 = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # they change the numbers of a GPU
RECORDED = (*SWITCHES, DEVICE, *THREADS, *TF32)

LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
LAUNCHING_MODULES = (
    *("accelerate.commands.launch", "accelerate.commands.accelerate_cli"),
    *("torch.distributed.run", "torch.distributed.launch"),
)


def launcher() -> psutil.Process | None:
    """Return the launcher's process, the parent of this one by its command line, or None.

    Variables cannot tell: each may be left over in a shell.
    """
    try:
        parent = psutil.Process().parent()
        words = [] if parent is None else parent.cmdline()
    except psutil.Error:  # of another user, or just ended
        return None
    if not words or not Path(words[0]).name.lower().startswith("python"):
        return None
    given = iter(words[1:])
    for word in given:
        if word == "-m":
            return parent if next(given, "") in LAUNCHING_MODULES else None
        if word in ("-W", "-X"):
            next(given, "")
        elif not word.startswith("-"):
            return parent if Path(word).stem in LAUNCHERS else None
    return None


def exported(environment: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """Return the variables as the user exported them: the launcher's own, if there is one."""
    parent = launcher()
    try:
        return environment if parent is None else parent.environ()
    except psutil.Error:
        return environment


def settle_processes(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Check the variables of processes, remove those left over, and return a line for each of them."""
    for name in [name for name, value in environment.items() if name.startswith("ACCELERATE_") and not value]:
        environment.pop(name)  # Accelerate takes empty for set
    for name in SWITCHES:
        _is_on(environment, name)  # raises if it is neither on nor off
    for name in REFUSED:
        if _is_on(environment, name):
            raise ValueError(f"{name} is set, and {REFUSED[name]} is not supported; unset it")
    _check_device(environment)
    _check_numbers(environment, ACCUMULATION)
    lines = _drop(environment, {FP8: "nothing is computed in fp8"} if FP8 in environment else {})
    for family, names in LAUNCHES.items():
        if all(environment.get(name) for name in names[:-1]):
            _check_launch(environment, names)
            _check_numbers(environment, names[-1], *[name for name in names if name == "MASTER_PORT"])
            continue
        if family == "torch":
            _check_started(environment)
        left_over = [name for name in names if name in environment]
        lines += _drop(environment, dict.fromkeys(left_over, "no launcher of several processes has set it"))
    return lines


def settle_training(
    precision: str,
    compiled: bool,
    accumulation: int,
    device: torch.device,
    environment: MutableMapping[str, str] = os.environ,
) -> tuple[dict[str, Any], list[str]]:
    """Return the training settings that the environment decides, and a line for each ignored variable.

    A precision is honoured where the settings say "auto", and a compilation that the launcher was asked
    for. Ignored variables are removed from the environment.
    """
    wanted, backend = (environment.get(name, "no").lower() for name in (PRECISION, BACKEND))
    if wanted not in PRECISIONS:
        raise ValueError(f"{PRECISION} is '{wanted}'; it is one of {', '.join(PRECISIONS)}")
    if (precision, wanted, device.type) == ("auto", "fp16", "cpu"):
        raise ValueError(f"{PRECISION} is fp16, which needs a GPU; unset it")
    if backend not in ("no", "inductor"):
        raise ValueError(f"{BACKEND} is '{backend}'; networks are compiled with inductor, or not at all")
    settings: dict[str, Any] = {"compile": compiled or backend == "inductor"}
    for name in NOT_COMPILING:
        if settings["compile"] and _is_on(environment, name):
            raise ValueError(f"{name} is set, and the network shall be compiled; unset it, or leave compile off")
    ignored = {
        name: "training.compile has no such choice"
        for name, usual in COMPILING.items()
        if environment.get(name, usual).lower() != usual.lower()
    }
    if precision == "auto" and wanted != "no":  # which `accelerate launch` sets by itself
        settings["mixed_precision"] = wanted
    elif wanted not in ("no", precision):
        ignored[PRECISION] = f"training.mixed_precision is {precision}"
    if environment.get(ACCUMULATION, str(accumulation)) != str(accumulation):
        ignored[ACCUMULATION] = f"training.gradient_accumulation_steps is {accumulation}"
    replaced = _replaced_by_launcher(environment)
    return settings, [*_drop(environment, ignored), *replaced]


def _drop(environment: MutableMapping[str, str], ignored: Mapping[str, str]) -> list[str]:
    """Remove variables from the environment, and return a line with the reason for each."""
    return [f"{name}={environment.pop(name)} is ignored: {reason}" for name, reason in ignored.items()]


def processes_launched(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of processes that a launcher has started, after `settle_processes`."""
    return max(int(environment.get(names[1], "1")) for names in LAUNCHES.values())


def ignore_splitting(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Remove FSDP from the environment of a run without several GPUs, and return a line if it was set."""
    if not _is_on(environment, FSDP):
        return []
    return _drop(environment, {FSDP: "weights are split among GPUs only, with a process for each"})


def recorded() -> dict[str, str]:
    """Return the exported variables that affect a run and that no setting names."""
    theirs = exported()
    return {name: theirs[name] for name in RECORDED if theirs.get(name)}


def _replaced_by_launcher(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each exported variable that `accelerate launch` has set to another value."""
    names, theirs = (PRECISION, BACKEND, *COMPILING), exported(environment)
    return [
        f"{name}={theirs[name]} is ignored: accelerate launch was started with {environment[name].lower()}"
        for name in names
        if name in environment and theirs.get(name, environment[name]).lower() != environment[name].lower()
    ]


def _check_started(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` if the launcher was asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` does so without mpirun, and says nothing. Its only trace
    is the address of the first process.
    """
    theirs, address = exported(environment), ("MASTER_ADDR", "MASTER_PORT")
    if theirs is not environment and any(environment.get(name) != theirs.get(name) for name in address):
        raise ValueError(
            "the launcher was asked for several processes, and 1 is at work; on CPUs use "
            "accelerate launch --config_file configs/accelerate/two_cpu_processes.yaml, or torchrun --nproc_per_node 2"
        )


def _check_launch(environment: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise `ValueError` unless rank, number of processes and local rank are numbers that agree."""
    rank, size, local = (environment[name] for name in names[:3])
    if not (rank.isdecimal() and size.isdecimal() and local.isdecimal() and int(local) <= int(rank) < int(size)):
        told = ", ".join(f"{name}={environment[name]}" for name in names[:3])
        raise ValueError(f"{told} cannot be: they are whole numbers, rank below size; unset them, or use a launcher")


def _check_numbers(environment: Mapping[str, str], *names: str) -> None:
    """Raise `ValueError` for the first variable that is not a whole number of at least 1."""
    for name in names:
        value = environment.get(name, "1")
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{name} is '{value}'; it must be a whole number of at least 1, or unset")


def _check_device(environment: Mapping[str, str]) -> None:
    """Raise `ValueError` if the machine does not have the device."""
    device = environment.get(DEVICE)
    if not device:
        return
    there, current = ["cpu"], torch.accelerator.current_accelerator()
    if current is not None and torch.accelerator.is_available():
        there += [current.type, *(f"{current.type}:{index}" for index in range(torch.accelerator.device_count()))]
    if device not in there:
        raise ValueError(f"{DEVICE} is '{device}', and this machine has {', '.join(there)}; unset it")


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    """Return whether a switch is on."""
    value = environment.get(name) or "false"
    try:
        return bool(str_to_bool(value))
    except ValueError as error:
        raise ValueError(f"{name} is '{value}'; give true or false, or unset it") from error
