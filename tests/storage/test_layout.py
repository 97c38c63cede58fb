"""Weight files that are written tensor by tensor are those that safetensors writes."""

import safetensors.torch
import torch

from grpaint.storage.files import file_facts, read_weights, write_weights
from grpaint.storage.layout import LateTensor, read_in_order

TENSORS = {
    "z": torch.arange(6.0).view(2, 3),
    "bits": torch.tensor([True, False, True]),
    "half": torch.arange(5).half(),
    "step": torch.tensor(7.0),
    "a.b": torch.arange(12, dtype=torch.bfloat16).view(3, 4).T,
    "none": torch.empty(0, 3),
    "count": torch.tensor([3, -1]),
}


def test_the_bytes_are_those_of_safetensors(tmp_path):
    facts = write_weights(tmp_path / "one.safetensors", TENSORS)
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert (tmp_path / "one.safetensors").read_bytes() == safetensors.torch.save(plain)
    assert facts == file_facts(tmp_path / "one.safetensors")


def test_late_tensors_are_read_one_after_another_in_the_order_of_the_file(tmp_path):
    reads = []

    def late(name, tensor):
        def read():
            reads.append(name)
            return tensor

        return LateTensor(tensor.shape, tensor.dtype, read)

    tensors = {name: late(name, tensor) for name, tensor in TENSORS.items()}
    write_weights(tmp_path / "late.safetensors", tensors, {"b": "1", "a": "2"})
    write_weights(tmp_path / "plain.safetensors", TENSORS, {"a": "2", "b": "1"})
    assert (tmp_path / "late.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    order, reads[:] = list(reads), []
    assert len(order) == len(TENSORS)
    assert len(list(read_in_order(tensors))) == len(TENSORS)
    assert reads == order
    halved = {name: tensor.half() for name, tensor in tensors.items()}
    write_weights(tmp_path / "half.safetensors", halved)
    stored = read_weights(tmp_path / "half.safetensors")[0]
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in TENSORS.items())
