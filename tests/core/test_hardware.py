"""Questions about the machine that have the same answer on every machine."""
import torch

from modules.core import hardware


def test_a_cpu_computes_in_float32():
    assert hardware.dtype(torch.device("cpu")) == torch.float32


def test_the_device_can_be_described_in_one_sentence():
    sentence = hardware.describe()
    assert sentence.endswith(".") and sentence.count(".") == 1 + hardware.name(hardware.device()).count(".")


def test_the_device_can_be_computed_on():
    where = hardware.device()
    assert torch.ones(2, device=where, dtype=hardware.dtype(where)).sum().item() == 2


def test_free_memory_is_a_number_of_bytes_or_unknown():
    free = hardware.memory_free(hardware.device())
    assert free is None or free > 1 << 20
