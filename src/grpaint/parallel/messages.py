"""Messages between ranks as bytes: JSON and safetensors; nothing is pickled."""

import json

import safetensors.torch

from grpaint.parallel.world import Message

LENGTH = 8  # bytes of the number that says how long a message is


def pack(message: Message) -> bytearray:
    """Return a message as bytes: the length of its JSON, the JSON, and a file of safetensors."""
    value, tensors = json.dumps(message[0]).encode(), message[1]
    content = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return bytearray().join([len(value).to_bytes(LENGTH), value, content])


def unpack(content: bytes) -> Message:
    """Return the message that :func:`pack` turned into bytes."""
    end = LENGTH + int.from_bytes(content[:LENGTH])
    return json.loads(content[LENGTH:end]), safetensors.torch.load(content[end:])
