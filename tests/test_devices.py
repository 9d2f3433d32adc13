import pytest
import torch

from skdiec.backbones import devices


def test_native_bfloat16_is_asked_of_the_hardware(monkeypatch):
    for capabilities, expected in [({}, False), ({"avx512_bf16": False}, False), ({"amx_bf16": True}, True)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert devices.has_native_bf16(torch.device("cpu")) == expected
    for capability in [(7, 5), (8, 0), (9, 0)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert devices.has_native_bf16(torch.device("cuda")) == (capability >= (8, 0))
    assert not devices.has_native_bf16(torch.device("meta"))


@pytest.mark.parametrize(
    ("capabilities", "emulated"),
    [
        ({}, []),
        ({"avx512_bf16": False, "avx512_fp16": False}, ["bf16", "fp16"]),
        ({"avx512_bf16": True, "avx512_fp16": False}, ["fp16"]),
        ({"avx512_bf16": False, "amx_bf16": True, "avx512_fp16": False, "amx_fp16": True}, []),
    ],
)
def test_precision_is_emulated_where_a_processor_is_known_to_lack_it(capabilities, emulated, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    device = torch.device("cpu")
    assert [each for each in ("fp32", "bf16", "fp16") if devices.is_emulated(each, device)] == emulated


@pytest.mark.parametrize(("capability", "emulated"), [((7, 5), ["bf16"]), ((8, 0), [])])
def test_precision_is_emulated_by_older_gpus(capability, emulated, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert [each for each in ("fp32", "bf16", "fp16") if devices.is_emulated(each, device)] == emulated


def test_device_is_cuda_where_there_is_one_unless_told_otherwise(monkeypatch):
    for available, expected in [(False, "cpu"), (True, "cuda")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert devices.default_device(None) == torch.device(expected)
        assert devices.default_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "mps:7", "xla", "fpga", "privateuseone"])
def test_device_that_does_not_compute_here_is_told_of(device):
    with pytest.raises(ValueError, match=f"device must be one that this machine computes on; got '{device}'"):
        devices.default_device(device)


@pytest.mark.parametrize("device", ["abacus", "", "cuda:-1", 1.5, [], True, 10**30, "cpu\0"])
def test_what_is_no_device_is_told_of(device):
    with pytest.raises(ValueError, match="device must be one that torch knows, such as 'cpu' or 'cuda'; got"):
        devices.default_device(device)


def test_there_is_one_cpu():
    assert devices.default_device("cpu:1") == torch.device("cpu")


def test_memory_of_the_cpu_is_known_where_the_system_tells_it(monkeypatch):
    monkeypatch.setattr(devices.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert devices.total_memory(torch.device("cpu")) == 4_096_000
    assert devices.total_memory(torch.device("meta")) is None
    monkeypatch.delattr(devices.os, "sysconf")
    assert devices.total_memory(torch.device("cpu")) is None
