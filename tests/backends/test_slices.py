"""A network that is made from its settings has the names, types and rows of the one that diffusers opens."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpaint.backends.base_model import find_base
from grpaint.backends.slices import blank_network
from grpaint.core.errors import CheckpointError
from tiny_pipelines import save, stock


# a U-Net, a table among its tensors, norms kept in fp32, a table that no file has
@pytest.mark.parametrize("pipeline", ["sdxl", "sd3", "krea2", "chroma"])
def test_a_blank_network_has_the_types_and_the_rows_of_the_opened_one(tmp_path, pipeline):
    folder = save(pipeline, tmp_path)
    whole = stock(folder)
    part = "unet" if hasattr(whole, "unet") else "transformer"
    network = type(getattr(whole, part)).from_pretrained(folder / part, dtype=torch.bfloat16)
    opened = network.state_dict()
    blank = blank_network(find_base(str(folder), "", "auto"), part, torch.bfloat16)
    assert blank
    state = blank.module.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in opened.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}
    buffers = dict(blank.module.named_buffers())
    for name, tensor in network.named_buffers():
        if name not in opened:
            assert torch.equal(buffers[name].float(), tensor.float()), name
    for name, tensor in opened.items():
        rows = slice(len(tensor) // 2, len(tensor))
        assert torch.equal(blank.read(name, rows).to(tensor.dtype), tensor[rows])
        assert torch.equal(blank.read(name, None).to(tensor.dtype), tensor)
    assert all(p.untyped_storage().nbytes() <= 4 for p in blank.module.parameters())
    assert blank.read("no.such.tensor", None) is None


def test_files_with_other_names_are_left_to_diffusers_and_another_architecture_is_refused(tmp_path):
    folder = save("sd3", tmp_path)
    base = find_base(str(folder), "", "auto")
    blank = blank_network(base, "transformer", torch.float32)
    file = next((folder / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    name, tensor = tensors.popitem()
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no weights there"):
        blank.starting_from(tmp_path / "nothing", "sd3")
    with pytest.raises(CheckpointError, match="1 tensors missing"):
        blank.starting_from(tmp_path / "other.safetensors", "sd3")
    save_file({**tensors, f"old.{name}": tensor}, file)
    assert blank_network(base, "transformer", torch.float32) is None


def test_a_run_s_folder_is_a_start_and_an_index_says_which_shards_are_read(tmp_path):
    folder = save("sd3", tmp_path)
    base = find_base(str(folder), "", "auto")
    file = next((folder / "transformer").glob("*.safetensors"))
    blank = blank_network(base, "transformer", torch.float32)
    tensors = load_file(file)
    (tmp_path / "000004").mkdir()
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "000004/model.safetensors", {"family": "sd3"}
    )
    name = next(iter(tensors))
    assert torch.equal(blank.starting_from(tmp_path / "000004", "sd3").read(name, None), tensors[name] + 1)
    stock(folder).transformer.save_pretrained(
        folder / "transformer", max_shard_size="20KB"
    )  # the whole file is left over
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    sharded = blank_network(base, "transformer", torch.float32)
    assert len(set(sharded.files.values())) > 1
    assert torch.equal(sharded.read(name, None), tensors[name])
