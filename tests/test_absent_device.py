"""The device that is not there behaves as one that is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hbi_models.transfer import fetched, sent
from tests.absent_device import ABSENT, CPU, MixedDevicesError, absent_device, values


def test_it_computes_and_learns_what_the_cpu_does() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    expected = layer(inputs).square().sum()
    expected.backward()
    weights, gradient = layer.weight.detach().clone(), layer.weight.grad
    layer.zero_grad()
    with absent_device():
        layer.to(ABSENT)
        loss = layer(inputs.to(ABSENT)).square().sum()
        loss.backward()
        assert loss.device == layer.weight.device == ABSENT
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == ABSENT
        torch.optim.SGD(layer.parameters(), lr=0.5).step()
    assert torch.equal(values(loss), expected)
    assert gradient is not None
    torch.testing.assert_close(values(layer.weight), weights - 0.5 * gradient)


def test_tensors_of_two_devices_do_not_mix() -> None:
    with absent_device():
        here, there = torch.ones(3), torch.ones(3, device=ABSENT)
        with pytest.raises(MixedDevicesError, match="aten::add"):
            here + there
        assert (there + torch.tensor(1.0)).device == ABSENT, "a number travels with the call"


def test_whatever_the_host_waits_for_is_noted() -> None:
    with absent_device() as journal:
        numbers = torch.arange(4, device=ABSENT)
        assert not journal.waits, "nothing came out of nothing"
        for kind, wait in (
            ("read", lambda: numbers.sum().item()),
            ("read", lambda: bool(numbers.any())),
            ("read", lambda: numbers.cpu()),
            ("size", lambda: numbers[numbers > 1]),
            ("size", lambda: numbers.nonzero()),
            ("index", lambda: numbers[torch.tensor([0, 1])]),
            ("copy", lambda: torch.ones(2).to(ABSENT)),
        ):
            journal.clear()
            wait()
            assert [found for found, _ in journal.waits] == [kind]


def test_page_locked_memory_is_copied_while_both_go_on() -> None:
    with absent_device() as journal:
        batch = torch.arange(6.0)
        there = sent(batch, ABSENT)
        assert sent(there, ABSENT) is there
        assert sent(batch, CPU) is batch
        assert not journal.waits
        assert journal.copies.total() == 1
    assert torch.equal(values(there), batch)


def test_tensors_of_every_type_are_fetched_in_one_transfer() -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.randn(2, 3),
        torch.tensor(7),
        torch.randn(5).half(),
        torch.empty(0, 4),
        torch.randn(2, 2, dtype=torch.float64).t(),
    ]
    with absent_device() as journal:
        there = [sent(tensor, ABSENT) for tensor in tensors]
        found = fetched(there)
        assert journal.reads() == 1
        assert not journal.others()
    for tensor, expected in zip(found, tensors, strict=True):
        assert tensor.device == CPU
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
