import platform
import resource
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from denoiser.device import (
    choose_mixed_precision,
    compilation,
    compile_for_sampling,
    free_memory,
    multiplies_bf16_natively,
    prepare_cpu,
)
from tests.conftest import tiny_unet

CPU = torch.device("cpu")


def test_auto_is_bf16_just_where_the_processor_has_it():
    flags = open("/proc/cpuinfo", encoding="utf-8").read().split()  # noqa: PTH123, SIM115
    native = "amx_bf16" in flags or "avx512_bf16" in flags
    assert multiplies_bf16_natively(CPU) == native
    assert choose_mixed_precision("auto", CPU) == ("bf16" if native else "no")


@pytest.mark.parametrize("wanted", ["no", "bf16"])
def test_what_is_asked_for_is_used(wanted):
    assert choose_mixed_precision(wanted, CPU) == wanted


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        choose_mixed_precision("fp16", CPU)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C.. compiler, and there is no 'no-such-compiler'"):
        compilation(True, CPU)
    with pytest.raises(ValueError, match="there is no 'no-such-compiler'; install"):
        compile_for_sampling(tiny_unet(), CPU)
    assert compilation(False, CPU) is None


def test_a_network_compiled_to_draw_predicts_nearly_the_same():
    model = tiny_unet(block_out_channels=(16,), attention_levels=())
    noisy, timesteps, labels = torch.randn(4, 1, 16, 16), torch.arange(4) * 200, torch.arange(4)
    with torch.no_grad():
        expected = model(noisy, timesteps, class_labels=labels).sample
        compile_for_sampling(model, CPU)
        predicted = model(noisy.to(model.dtype), timesteps, class_labels=labels).sample
    assert 0 < float((predicted.float() - expected).std() / expected.std()) < 0.03


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they please")
@pytest.mark.skipif(
    HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(encoding="utf-8"), reason="pages are large anyway"
)
def test_a_prepared_process_is_not_given_the_same_memory_anew():
    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            [torch.ones(2**20) for _ in range(16)]  # 64 MiB, 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    prepare_cpu(PartialState(cpu=True))
    page_faults()
    assert page_faults() < 16384


@pytest.mark.parametrize(("most", "expected"), [("1000\n", 600), ("max\n", None)])
def test_the_limit_of_a_control_group_counts(tmp_path, most, expected):
    files = {"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/memory.current": "400\n"}
    for name, text in {**files, "sys/fs/cgroup/job/step/memory.max": most}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert (free_memory(tmp_path) == expected) == (expected is not None)
    assert free_memory(tmp_path / "nowhere") > 1000
