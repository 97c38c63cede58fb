"""The built-in model: its weight sets, adapters, guidance, files and two parametrisations."""

from pathlib import Path

import pytest
import torch

from grpaint.backends.adapters import Lora
from grpaint.backends.scenes import ScenePolicy, Scenes
from grpaint.core import CheckpointError, Ode, Prompt, noise
from grpaint.core.runtime import Runtime
from grpaint.rollout import Closed, Plan, roll
from grpaint.storage.files import write_weights

FP32 = Runtime("cpu", "fp32")
PROMPTS = [Prompt("a red circle"), Prompt("two blue squares"), Prompt("a small white cross above a large green circle")]


def policy(**settings: object) -> ScenePolicy:
    """The random network, its zero-initialised layers woken up."""
    made = Scenes(start="random", **settings).load(FP32)
    with torch.no_grad():
        for number, parameter in enumerate(made.net.parameters()):
            parameter.add_(noise(("wake", number), [0], parameter.shape)[0], alpha=0.05)
    made._empty_caption = made.encode([Prompt("")])  # the text encoder has changed
    made.weights.copies["average"] = {n: p.detach().clone() for n, p in made.weights.trainable.items()}
    if "reference" in made.weights.copies:
        made.weights.copies["reference"] = {n: p.detach().clone() for n, p in made.weights.trainable.items()}
    return made


def seen(made: ScenePolicy, weights: str = "current", level: float = 0.6) -> torch.Tensor:
    """x0 as the model sees it at a middle noise level."""
    x = made.noise(("x",), range(len(PROMPTS)))
    here = made.path.at(level if made.spec.parametrisation == "velocity" else 500)
    with torch.no_grad():
        return made.predict(x, here, made.encode(PROMPTS), weights).x0


def test_it_is_small_and_its_text_encoder_is_frozen_in_reinforcement_learning() -> None:
    made = policy()
    assert sum(p.numel() for p in made.net.parameters()) <= 3_000_000
    trained = set(made.weights.trainable)
    assert not any(name.startswith(("words", "word_places", "text.")) for name in trained)
    assert len(trained) < len(list(policy(train_text=True).parameters()))


@pytest.mark.parametrize("kind", ["velocity", "epsilon"])
def test_the_prediction_is_consistent_with_what_the_network_was_shown(kind: str) -> None:
    made = policy(parametrisation=kind)
    for here in made.path.grid(8)[:-1]:
        x = made.noise(("x",), range(3))
        with torch.no_grad():
            x0, eps = made.predict(x, here, made.encode(PROMPTS))
        torch.testing.assert_close(here.alpha * x0 + here.sigma * eps, x, atol=2e-4, rtol=1e-4)
        assert x0.abs().max() < 50  # finite and sane down to alpha = 5e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_a_smaller_batch_changes_nothing_beyond_rounding(batch: int) -> None:
    torch.testing.assert_close(seen(policy(batch=batch)), seen(policy()), atol=2e-5, rtol=1e-5)


def test_guidance_extrapolates_from_the_empty_caption_and_costs_double() -> None:
    made = policy()
    conditional = seen(made)
    here, x = made.path.at(0.6), made.noise(("x",), range(3))
    with torch.no_grad():
        free = made.predict(x, here, made.encode([Prompt("")] * 3)).x0
    before = made.meter.counts["training"]
    made.guidance = 2.5
    guided = seen(made)
    assert made.meter.counts["training"] - before == 6
    torch.testing.assert_close(guided, free + 2.5 * (conditional - free), atol=1e-4, rtol=1e-4)


def test_weight_sets_answer_for_themselves() -> None:
    made = policy()
    before = seen(made)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.1)
    moved = seen(made)
    assert not torch.equal(moved, before)
    assert torch.equal(seen(made, "reference"), before)
    assert torch.equal(seen(made, "average"), before)
    made.blend("average", 0.0)
    assert torch.equal(seen(made, "average"), moved)
    assert torch.equal(seen(made), moved)
    with pytest.raises(ValueError, match="cannot blend into the current"):
        made.blend("current", 0.5)


def test_an_adapter_is_all_that_trains_and_switches_off_exactly() -> None:
    whole, made = policy(), policy(lora=Lora(rank=4, alpha=8.0))
    assert all(".lora_" in name for name in made.weights.trainable)
    base = {n: p.detach().clone() for n, p in made.net.named_parameters() if ".lora_" not in n}
    off = seen(made, "reference")
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    x = made.noise(("x",), range(3))
    for _ in range(2):  # the second matrix starts at 0: the first moves from the second update on
        optimizer.zero_grad()
        made.predict(x, made.path.at(0.6), made.encode(PROMPTS)).x0.square().mean().backward()
        assert all(p.grad is not None for p in made.parameters())
        optimizer.step()
    assert all(torch.equal(p, base[n]) for n, p in made.net.named_parameters() if ".lora_" not in n)
    assert torch.equal(seen(made, "reference"), off)
    assert not torch.allclose(seen(made), off)
    assert sum(p.numel() for p in made.parameters()) < 0.1 * sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_an_extrapolated_average_is_farther_from_the_reference_in_the_direction_of_the_current_weights(
    lora: Lora | None,
) -> None:
    made = policy(lora=lora)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    reference, current = made.export("reference")[0], made.export("current")[0]
    made.blend("average", 0.0, extrapolation=0.5)
    for name, tensor in made.export("average")[0].items():
        torch.testing.assert_close(tensor, reference[name] + 1.5 * (current[name] - reference[name]))
    made.blend("average", 0.75, extrapolation=0.0)
    assert all(torch.equal(t, current[name]) for name, t in made.export("current")[0].items())
    if lora is None:  # the average of two factors is not that of their product
        for name, tensor in made.export("average")[0].items():
            torch.testing.assert_close(tensor, reference[name] + 1.375 * (current[name] - reference[name]))


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_an_exported_file_is_the_model_that_was_trained(tmp_path: Path, lora: Lora | None) -> None:
    made = policy(lora=lora)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02)
    made.blend("average", 0.0)
    tensors, header = made.export("average")
    file = tmp_path / "model.safetensors"
    write_weights(file, tensors, header)
    again = Scenes(start=str(file)).load(FP32)
    torch.testing.assert_close(seen(again), seen(made, "average"), atol=1e-4, rtol=1e-4)
    if lora is None:
        assert torch.equal(seen(again), seen(made, "average"))


def test_a_file_of_the_other_parametrisation_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_weights(file, *policy(parametrisation="epsilon").export())
    with pytest.raises(CheckpointError, match='its parametrisation is "epsilon", the recipe\'s is "velocity"'):
        Scenes(start=str(file)).load(FP32)


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Scenes(start="random", lora=Lora(rank=2)).load(FP32)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("kind", ["velocity", "epsilon"])
def test_samples_depend_on_prompt_seed_and_number_alone(kind: str) -> None:
    made = policy(parametrisation=kind)
    plan = Plan(4, Ode(), Closed())
    together = roll(made, PROMPTS, 1, plan, iteration=0, seed=7).x0
    alone = roll(made, PROMPTS[:1], 1, plan, iteration=0, seed=7).x0
    torch.testing.assert_close(alone[0], together[0], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(together, roll(made, PROMPTS, 1, plan, iteration=0, seed=8).x0)
