"""A frozen base in 8 or 4 bits, where torchao or bitsandbytes is installed: ``pip install 'grpaint[quant]'``."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.commands.export.formats import export
from grpaint.core import ConfigError, Ddim, FlowSde, MissingExtra, Prompt
from grpaint.core.runtime import Runtime
from grpaint.learn.objective import PolicyGradient
from grpaint.rollout import Plan, Whole, act, roll
from grpaint.storage.files import write_weights
from tiny_pipelines import save

LIBRARY = {"int8": "torchao", "nf4": "bitsandbytes"}
PROMPTS = [Prompt("a red cat"), Prompt("two blue dogs")]


def needs(precision: str) -> Any:
    missing = importlib.util.find_spec(LIBRARY[precision]) is None
    return pytest.param(precision, marks=pytest.mark.skipif(missing, reason=f"needs {LIBRARY[precision]}"))


HELD = [needs(precision) for precision in LIBRARY]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(name, root) for name in ("sdxl", "sd3", "flux-dev")}


def load(folder: Path, base_precision: Any, compute: Any = "fp32", **settings: Any) -> DiffusersPolicy:
    tokens = {} if folder.name == "sdxl" else {"tokens": 16}
    spec = Diffusers(
        str(folder), height=16, width=16, lora=Lora(4), base_precision=base_precision, **tokens, **settings
    )
    return spec.load(Runtime("cpu", compute))


def predicted(policy: DiffusersPolicy, weights: Any = "current") -> Tensor:
    x, here = policy.noise((7,), range(2)), policy.path.grid(4)[1]
    with torch.no_grad():
        return policy.predict(x, here, policy.encode(PROMPTS), weights).eps


def update(policy: DiffusersPolicy, optimizer: torch.optim.Optimizer) -> None:
    sampler = FlowSde() if policy.name in ("sd3", "flux") else Ddim()
    rollout = roll(policy, PROMPTS, 2, Plan(3, sampler, Whole()), iteration=0, seed=0)
    for part in rollout.transitions:
        gaussian, _ = act(policy, sampler, part.x, part.here, part.there, rollout.cond.rows(part.rows))
        assert torch.equal(gaussian.log_prob(part.x_next), part.logp)
    optimizer.zero_grad()
    for term in PolicyGradient()(policy, rollout, torch.tensor([1.0, -1.0, 1.0, -1.0])):
        term.loss.backward()
    optimizer.step()


@pytest.mark.parametrize(("name", "compute"), [("sdxl", "fp32"), ("sd3", "bf16"), ("flux-dev", "fp32")])
@pytest.mark.parametrize("precision", HELD)
def test_an_adapter_learns_on_a_base_of_few_bits(
    folders: dict[str, Path], name: str, precision: str, compute: str
) -> None:
    whole, policy = load(folders[name], "full", compute), load(folders[name], precision, compute)
    off = (predicted(policy) - predicted(whole)).norm() / predicted(whole).norm()
    assert 1e-5 < off < {"int8": 0.02, "nf4": 0.3}[precision]
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    names = [key for key, _ in whole.weights.trainable.items()]
    assert names == list(policy.weights.trainable)
    base, optimizer = predicted(policy), torch.optim.Adam(policy.parameters(), lr=0.01)
    update(policy, optimizer)
    update(policy, optimizer)  # the first moves the second matrices alone
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())
    assert not torch.equal(predicted(policy), base)
    assert torch.equal(predicted(policy, "reference"), base)


@pytest.mark.parametrize("precision", HELD)
def test_its_adapter_opens_on_the_whole_base_and_is_exported_from_there(
    folders: dict[str, Path], precision: str, tmp_path: Path
) -> None:
    policy = load(folders["sd3"], precision)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    for _ in range(2):
        update(policy, optimizer)
    write_weights(tmp_path / "model.safetensors", *policy.export("current"))
    again = load(folders["sd3"], precision, start=str(tmp_path))
    torch.testing.assert_close(predicted(again), predicted(policy), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"add --set model\.base_precision=full\.$"):
        export(again, {}, 2, "diffusers", tmp_path / "out")
    assert export(load(folders["sd3"], "full", start=str(tmp_path)), {}, 2, "diffusers", tmp_path / "out") < 1e-3


@pytest.mark.parametrize("precision", HELD)
def test_a_layers_weights_take_a_quarter_of_fp32_or_less(folders: dict[str, Path], precision: str) -> None:
    layer = load(folders["sd3"], precision).pipe.transformer.transformer_blocks[0].ff.net[2]
    weight = getattr(layer, "base_layer", layer).weight
    stored_bytes = weight.qdata.nbytes if precision == "int8" else weight.nbytes
    assert stored_bytes == 32 * 128 // {"int8": 1, "nf4": 2}[precision]


def test_a_base_that_is_trained_is_not_held_in_few_bits() -> None:
    with pytest.raises(ValueError, match=r'^base_precision = "int8" is for a frozen base: set model\.lora'):
        Diffusers("x", base_precision="int8")


@pytest.mark.parametrize("precision", list(LIBRARY))
def test_without_the_library_the_line_to_type_is_named_before_weights_load(
    folders: dict[str, Path], precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("torchao.quantization", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, module, None)
    for file in folders["sdxl"].rglob("*.json"):
        place = tmp_path / file.relative_to(folders["sdxl"])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.read_text())
    with pytest.raises(MissingExtra, match=r"pip install 'grpaint\[quant\]'"):
        load(tmp_path, precision)
