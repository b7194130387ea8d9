"""Each variable of the environment, alone and in pairs: honoured, ignored with a line, or refused in one."""

import os
import re
import types
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from denoiser.device import choose_mixed_precision, num_cores
from denoiser.environment import COMPILING, LAUNCHES, NOT_COMPILING, REFUSED, launcher, settle_processes
from pipelines.training import RunConfig, TrainingConfig, start_accelerator
from pipelines.training.trainer import as_run
from tests.conftest import ROOT
from tests.reliability import record

SOAK = bool(os.environ.get("SOAK"))  # whether to try all that can be tried
LEFT_OVER = "ignored, unless a launcher has set all of its family"
IGNORED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "ignored: the run's own setting counts"),
    **dict.fromkeys(COMPILING, ("True", "ignored where it is not as `accelerate launch` leaves it")),
    "ACCELERATE_DYNAMO_MODE": ("max-autotune", "ignored where it is not as `accelerate launch` leaves it"),
    "ACCELERATE_FP8_BACKEND": ("AO", "ignored: nothing is computed in fp8"),
    "ACCELERATE_USE_FSDP": ("true", "honoured only with several processes, each with a GPU"),
    **{name: ("1", LEFT_OVER) for names in LAUNCHES.values() for name in names},
    "WORLD_SIZE": ("2", LEFT_OVER),
    "MASTER_ADDR": ("node7", LEFT_OVER),
    "MASTER_PORT": ("29500", LEFT_OVER),
}
HONOURED = {
    "ACCELERATE_USE_CPU": ("true", "honoured, and named at the head of `config.yaml`"),
    "ACCELERATE_TORCH_DEVICE": ("cpu", "honoured if the device is there, and named at the head of `config.yaml`"),
    "ACCELERATE_MIXED_PRECISION": ("bf16", "honoured where `training.mixed_precision` is auto, else ignored"),
    "ACCELERATE_DYNAMO_BACKEND": ("inductor", "honoured as `training.compile`"),
    "ACCELERATE_DEBUG_MODE": ("true", "honoured: what the processes tell each other is checked"),
    "ACCELERATE_CPU_AFFINITY": ("true", "honoured: each process of a GPU stays near to it"),
    "OMP_NUM_THREADS": ("3", "honoured, and named at the head of `config.yaml`"),
    "MKL_NUM_THREADS": ("3", "honoured, and named at the head of `config.yaml`"),
    "NVIDIA_TF32_OVERRIDE": ("0", "honoured by CUDA's libraries, and named at the head of `config.yaml`"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("1", "honoured by PyTorch on GPUs, and named at the head of `config.yaml`"),
}
WITHOUT_EFFECT = {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "NODE_RANK": "1",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "ACCELERATE_LOG_LEVEL": "error",
    "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "true",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "FORK_LAUNCHED": "1",
}
REFUSED_VALUES = {
    **dict.fromkeys(REFUSED, "true"),
    "ACCELERATE_USE_CPU": "maybe",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_MIXED_PRECISION": "fp8",
    "ACCELERATE_DYNAMO_BACKEND": "eager",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "four",
}
KINDS = {
    **dict.fromkeys(IGNORED, "ignored"),
    **dict.fromkeys(HONOURED, "honoured"),
    **dict.fromkeys(WITHOUT_EFFECT, "without effect"),
    **dict.fromkeys(REFUSED, "refused"),
}
VALUES = {
    **{name: value for name, (value, _) in {**IGNORED, **HONOURED}.items()},
    **WITHOUT_EFFECT,
    **dict.fromkeys(REFUSED, "true"),
}


# All that Accelerate's own source names: whatever of it has no row above changes nothing by itself.
SOURCE = Path(accelerate.__file__).parent.rglob("*.py")
NAMES = re.compile(r"""["']((?:ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM)_[A-Z0-9_]*[A-Z0-9])["']""")
OTHERS = sorted({name for path in SOURCE for name in NAMES.findall(path.read_text(encoding="utf-8"))} - {*VALUES})


@pytest.fixture
def start(monkeypatch, caplog):
    """Start a run's accelerator with nothing but the given variables. Returns it, the run's settings, and the lines."""

    def call(training=None, **variables):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        caplog.clear()
        with monkeypatch.context() as patched:
            for name in os.environ:
                if name in VALUES or name in NOT_COMPILING or name.startswith(("ACCELERATE_", "FSDP_")):
                    patched.delenv(name)
            for name, value in variables.items():
                patched.setenv(name, value)
            config = RunConfig("run", training or TrainingConfig(max_steps=1))
            accelerator = start_accelerator(config)
            return accelerator, as_run(config, accelerator).training, caplog.messages

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def test_without_variables_there_is_no_line(start):
    accelerator, _, lines = start()
    assert lines == []
    assert accelerator.num_processes == 1
    assert torch.get_num_threads() == num_cores()


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_accelerate_reads_changes_nothing_by_itself(start, name):
    plain, variable = start(), start(**{name: "1"})
    assert variable[1:] == plain[1:]
    assert variable[0].num_processes == 1
    assert variable[0].gradient_accumulation_steps == 1
    assert variable[0].distributed_type == plain[0].distributed_type


@pytest.mark.parametrize("first", VALUES)
def test_no_variable_beats_a_setting_silently_alone_or_beside_another(start, first):
    others = [name for name in VALUES if name > first and (SOAK or not {name, first} & set(WITHOUT_EFFECT))]
    for names in [(first,), *((first, other) for other in others)]:
        check(start, names)


def check(start, names):
    variables = {name: VALUES[name] for name in names}
    refused = [name for name in names if KINDS[name] == "refused"]
    if refused:
        with pytest.raises(ValueError, match=f"^({'|'.join(refused)}) is set, and .* is not supported; unset it$"):
            start(**variables)
        return
    accelerator, training, lines = start(**variables)
    ignored = [name for name in names if KINDS[name] == "ignored"]
    assert sorted(re.match(r"(\w+)=", line)[1] for line in lines) == sorted(ignored)
    assert all(f"{name}={VALUES[name]} is ignored: " in "\n".join(lines) for name in ignored)
    assert (accelerator.num_processes, accelerator.gradient_accumulation_steps) == (1, 1)
    assert not torch.distributed.is_initialized()
    plugin = accelerator.state.dynamo_plugin
    assert (plugin.mode, plugin.fullgraph, plugin.dynamic) == ("default", False, None)
    own = choose_mixed_precision("auto", accelerator.device)
    assert training.mixed_precision == ("bf16" if "ACCELERATE_MIXED_PRECISION" in names else own)
    assert training.compile is ("ACCELERATE_DYNAMO_BACKEND" in names)


@pytest.mark.parametrize(("name", "value"), REFUSED_VALUES.items())
def test_what_cannot_be_is_refused_with_the_name_of_the_variable(start, name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as refused:
        start(**{name: value})
    assert len(str(refused.value).splitlines()) == 1


def test_a_precision_that_the_run_chooses_beats_the_environments(start):
    accelerator, _, lines = start(TrainingConfig(max_steps=1, mixed_precision="no"), ACCELERATE_MIXED_PRECISION="bf16")
    assert accelerator.mixed_precision == "no"
    assert lines == ["ACCELERATE_MIXED_PRECISION=bf16 is ignored: training.mixed_precision is no"]


def test_fp16_is_refused_where_there_is_no_gpu(start):
    with pytest.raises(ValueError, match="ACCELERATE_MIXED_PRECISION is fp16, which needs a GPU; unset it"):
        start(ACCELERATE_MIXED_PRECISION="fp16")


@pytest.mark.parametrize("name", NOT_COMPILING)
def test_a_compilation_that_the_environment_turns_off_is_refused(start, name):
    with pytest.raises(ValueError, match=f"{name} is set, and the network shall be compiled"):
        start(TrainingConfig(max_steps=1, compile=True), **{name: "1"})
    assert start(**{name: "1"})[2] == []


@pytest.mark.parametrize(
    "ranks",
    [{"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}, {"LOCAL_RANK": "1"}, {"RANK": "1", "LOCAL_RANK": "x"}],
)
def test_ranks_that_cannot_be_are_refused(ranks):
    launch = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    with pytest.raises(ValueError, match="RANK=.* cannot be: they are whole numbers, rank below size"):
        settle_processes({**launch, **ranks})


@pytest.mark.parametrize(
    ("name", "value"), [("MASTER_PORT", "abc"), ("LOCAL_WORLD_SIZE", "0"), ("LOCAL_WORLD_SIZE", "x")]
)
def test_what_goes_with_a_launch_is_a_number(name, value):
    launch = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    with pytest.raises(ValueError, match=f"{name} is '{value}'; it must be a whole number"):
        settle_processes({**launch, name: value})


def test_an_empty_variable_is_as_good_as_unset(start):
    names = [name for name in (*IGNORED, *HONOURED, *REFUSED) if name.startswith("ACCELERATE_")]
    assert start(**dict.fromkeys(names, ""))[2] == []


@pytest.mark.parametrize(
    ("words", "launches"),
    [
        ("python /bin/torchrun --nproc_per_node 2 train.py", True),
        ("python3 -u -X dev -m accelerate.commands.accelerate_cli launch train.py", True),
        ("python -m torch.distributed.run train.py", True),
        ("python sweep.py --tool torchrun", False),
        ("python -m sweep accelerate", False),
        ("bash torchrun", False),
        ("python", False),
    ],
)
def test_a_launcher_is_known_by_its_script(monkeypatch, words, launches):
    parent = types.SimpleNamespace(cmdline=words.split)
    monkeypatch.setattr("psutil.Process.parent", lambda self: parent)
    assert launcher() is (parent if launches else None)


def test_what_a_launcher_has_set_stays():
    for names in LAUNCHES.values():
        launch = {**dict(zip(names[:-1], ("1", "2", "1", "localhost", "29500"), strict=False)), names[-1]: "2"}
        environment = dict(launch)
        assert settle_processes(environment) == []
        assert environment == launch


def test_the_docs_list_each_variable():
    """The table is made here: `make soak` writes it anew."""
    rows = {
        **{name: what for name, (_, what) in {**IGNORED, **HONOURED}.items()},
        **dict.fromkeys(REFUSED, "refused where it is true"),
        **dict.fromkeys(NOT_COMPILING, "refused where the network shall be compiled"),
        **dict.fromkeys(WITHOUT_EFFECT, "changes nothing by itself"),
    }
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    for name, what in rows.items():
        record("environment", f"`{name}`", what)
    assert [name for name, what in rows.items() if f"| `{name}` | {what} |" not in page] == []
