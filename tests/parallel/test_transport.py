"""Tensors on their way between processes."""

import pytest
import torch

from cogvideox.parallel.transport import Receiver, Sender, packed, unpacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_tensor_arrives_as_it_was(dtype: torch.dtype) -> None:
    """numpy, which Ray places in shared memory, has no bf16."""
    x = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype).transpose(0, 2)
    out = unpacked(packed(x))
    assert torch.equal(out, x) and out.dtype == dtype
    out.zero_()  # Ray's own memory cannot be written


def test_what_stays_the_same_travels_once() -> None:
    """Prompts of 226 x 4096 values a step would travel 50 times in a run."""
    sender, receiver = Sender(), Receiver()
    x, other = torch.arange(6.0), torch.arange(6.0) + 1
    first, second = sender.kept(x), sender.kept(x.clone())
    assert first.parts is not None and second.parts is None
    assert torch.equal(receiver.take(first), x) and torch.equal(receiver.take(second), x)
    assert torch.equal(receiver.take(sender.kept(other)), other)
    sender.forget()
    receiver.forget()
    assert torch.equal(receiver.take(sender.kept(x)), x)


def test_equal_bytes_of_another_shape_are_another_tensor() -> None:
    """A batch of two would get the prompts of a batch of one."""
    sender = Sender()
    assert sender.kept(torch.zeros(2, 3)).key != sender.kept(torch.zeros(3, 2)).key
