import pytest
import torch

from denoiser.device import choose_mixed_precision, compilation, multiplies_bf16_natively

CPU = torch.device("cpu")


def test_auto_is_bf16_just_where_the_processor_has_it():
    flags = open("/proc/cpuinfo").read().split()  # noqa: PTH123, SIM115
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
    assert compilation(False, CPU) is None
