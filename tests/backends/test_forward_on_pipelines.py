"""Forward-process objectives and GRPO-Guard on tiny pipelines of both kinds: a flow and an epsilon model."""

from pathlib import Path

import pytest
import torch

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers
from grpaint.core import Ddim, FlowSde, Prompt, Sampler
from grpaint.core.runtime import Runtime
from grpaint.learn import AdvantageWeightedMatching, DiffusionNft, ElboPolicyGradient, Guard, PolicyGradient
from grpaint.learn.forward import ForwardObjective
from grpaint.rollout import Closed, Plan, Whole, roll
from tiny_pipelines import save_all

PROMPTS = [Prompt("a red cat"), Prompt("two blue dogs")]
ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, -0.5])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tmp_path_factory.mktemp("pipelines"))


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", ["sd3", "sd15"])
@pytest.mark.parametrize("objective", [DiffusionNft(), ElboPolicyGradient(), AdvantageWeightedMatching()], ids=str)
def test_adapters_move_and_agree_with_the_behaviour_weights_before_they_do(
    folders: dict[str, Path], name: str, objective: ForwardObjective, guidance: float
) -> None:
    policy = Diffusers(str(folders[name]), guidance=guidance, lora=Lora(4)).load(Runtime())
    policy.blend("behaviour", 0.0)
    plan = Plan(3, window=Closed(), weights="behaviour")
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for iteration in range(2):
        rollout = roll(policy, PROMPTS, 2, plan, iteration=iteration, seed=0)
        optimizer.zero_grad()
        for term in objective(policy, rollout, ADVANTAGE):
            term.loss.backward()
            assert term.loss.isfinite()
            for gap in ("behind", "log_ratio", "kl"):
                assert bool(term.measures.get(gap, torch.zeros(1)).any()) == (iteration > 0 and gap in term.measures)
        assert any(p.grad is not None and p.grad.any() for p in policy.parameters())
        optimizer.step()
        policy.blend("behaviour", 0.9)


@pytest.mark.parametrize(("name", "sampler"), [("sd3", FlowSde()), ("sd15", Ddim())], ids=["sd3", "sd15"])
def test_guards_ratio_is_exactly_one_before_an_update(folders: dict[str, Path], name: str, sampler: Sampler) -> None:
    policy = Diffusers(str(folders[name]), lora=Lora(4)).load(Runtime())
    rollout = roll(policy, PROMPTS, 2, Plan(3, sampler, Whole()), iteration=0, seed=0)
    for term, transition in zip(PolicyGradient(Guard())(policy, rollout, ADVANTAGE), rollout.transitions, strict=True):
        length = abs(transition.here.level - transition.there.level)
        assert term.loss.item() == pytest.approx(-ADVANTAGE.sum().item() / length / 8, abs=1e-6)
        assert not term.measures["clip_fraction"].any()
        term.loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters())
