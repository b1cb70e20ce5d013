from __future__ import annotations

import pytest
import torch

from atlas_flwr.errors import UserError
from atlas_flwr.training import precision as prec
from atlas_flwr.training.memory import peak_bytes, reset_peak

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("visible", [True, False])
def test_auto_takes_cuda_where_it_is_visible(monkeypatch, visible):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    assert prec.resolve_device("auto").type == ("cuda" if visible else "cpu")
    assert prec.resolve_device("cpu").type == "cpu"


def test_cuda_asked_and_not_visible_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^engine.device: 'cuda'") as error:
        prec.resolve_device("cuda")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("capability", "want"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_on_a_gpu_goes_by_its_generation(monkeypatch, capability, want):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert prec.choose_precision("auto", CUDA) == want


@pytest.mark.parametrize(
    ("capabilities", "want"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512": True, "avx512_bf16": False}, "fp32"),
        ({"architecture": "arm"}, "fp32"),
    ],
)
def test_auto_on_a_cpu_goes_by_its_instructions(monkeypatch, capabilities, want):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert prec.choose_precision("auto", CPU) == want


def test_what_is_asked_is_what_is_used():
    assert prec.choose_precision("fp32", CUDA) == "fp32"
    assert prec.choose_precision("bf16", CPU) == "bf16"
    assert prec.choose_precision("fp16", CUDA) == "fp16"
    with pytest.raises(UserError, match=r"^train.precision: 'fp16'"):
        prec.choose_precision("fp16", CPU)


def test_autocast_casts_the_product_and_fp32_does_not():
    x = torch.ones(2, 2)
    with prec.autocast("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with prec.autocast("fp32", CPU):
        assert (x @ x).dtype == torch.float32


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with prec.threads_of(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_seeded_draws_repeat_and_the_outer_stream_goes_on():
    torch.manual_seed(0)
    want = torch.rand(2)
    torch.manual_seed(0)
    with prec.seeded(5, CPU):
        one = torch.rand(3)
    got = torch.rand(2)
    with prec.seeded(5, CPU):
        two = torch.rand(3)
    assert torch.equal(one, two)
    assert torch.equal(got, want)


def test_device_has_a_name():
    assert prec.device_name(CPU) == "cpu"


def test_peak_memory_of_the_process_grows_with_what_it_holds():
    reset_peak(CPU)
    before = peak_bytes(CPU)
    assert 10**7 < before < 10**11
    grown = torch.ones(before // 4 + 25_000_000)  # more than was ever resident
    assert peak_bytes(CPU) >= before + 5 * 10**7
    del grown
