"""A whole GRPO run on the built-in model, written out: `grpaint train flow-grpo-fast` without its conveniences.

    python examples/whole_run.py            # about a minute on two cores; too short to learn much
    python examples/whole_run.py 440        # as many iterations as that recipe

Post-training a text-to-image model is a loop of five lines: draw prompts, roll out a group of images for each, score
them, turn scores into advantages within each group, and make the steps that led to better images more likely.
"""

import sys
from itertools import pairwise

import torch

from grpaint.backends.scenes import Scenes
from grpaint.core import Cps, Ode, step
from grpaint.core.runtime import resolve
from grpaint.learn import GroupNorm, PolicyGradient, PpoClip, RewardSet
from grpaint.rewards.scenes import SceneChecker
from grpaint.rollout import Plan, Random, Shared, roll
from grpaint.scenes.world import SceneData, judge

SEED, PROMPTS, GROUP = 0, 12, 12


def held_out_score(policy, prompts) -> float:
    """Return the share of held-out prompts whose image matches the whole caption.

    Sampling repeats one line: the network predicts (clean image, noise), and the sampler takes the step to the next
    noise level. `Ode` adds no noise, so the image depends on the start noise alone.
    """
    with torch.no_grad():
        cond = policy.encode(prompts)
        x = policy.noise((SEED, "held-out"), range(len(prompts)))
        for here, there in pairwise(policy.path.grid(20)):
            x = step(Ode(), policy.predict(x, here, cond), here, there).mean
        return judge(policy.decode(x), prompts).strict.mean().item()


def main(iterations: int) -> None:
    # The model: a rectified flow of 2.5 M parameters, trained on drawings of coloured shapes. About half of its images
    # match their captions.
    policy = Scenes().load(resolve("auto", "auto"))
    data = SceneData()
    held_out = data.held_out(128, seed=1)

    # How to explore. Eight steps lead from noise to image. Two of them, at a random position in each iteration, are
    # noisy, so that a group's images differ; only those two are trained. The start noise is the same within a group, so
    # differences in score are due to the two noisy steps.
    plan = Plan(steps=8, sampler=Cps(eta=0.7), window=Random(size=2, low=0, high=4), start=Shared())

    # What to reward. The checker recognises shapes, colours, counts, sizes and places in the image. It ignores the
    # background, which slowly develops a woven pattern; the recipes prevent that with an anchor, a supervised loss on
    # drawn scenes.
    rewards = RewardSet({"checker": SceneChecker()}, {"checker": 1.0})

    # How to learn from it. Advantage: how far a sample scored above its group's mean. Objective: take each noisy step
    # again with the current weights and raise its likelihood in proportion to its advantage, in a clipped range (PPO).
    advantage = GroupNorm()
    objective = PolicyGradient(PpoClip(low=1e-3, high=1e-3))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)

    print(f"before: {100 * held_out_score(policy, held_out):.1f}% of held-out prompts drawn right")
    for iteration in range(iterations):
        prompts = data.prompts(PROMPTS, iteration, SEED)

        # 144 images, 12 for each of 12 prompts. Each noisy step is recorded: the latents before and after it, and its
        # log-likelihood.
        rollout = roll(policy, prompts, GROUP, plan, iteration=iteration, seed=SEED)

        # Scores, and from them advantages. If all members of a group score the same, their advantages are 0.
        images = policy.decode(rollout.x0)
        table = rewards.score(images, [prompts[i] for i in rollout.group.tolist()])
        advantages = advantage(table, rollout)

        # The objective yields its loss in terms, one noisy step at a time; each graph is freed before the next.
        optimizer.zero_grad()
        ratio_error = 0.0
        for term in objective(policy, rollout, advantages):
            term.loss.backward()
            ratio_error = max(ratio_error, term.measures["ratio_error"].max().item())
        torch.nn.utils.clip_grad_norm_(list(policy.parameters()), 1.0)
        optimizer.step()

        # Before the update the new policy is the old one, so the ratio of likelihoods must be 1. If this number is not
        # tiny, the model computes different things in rollout and training, and the update is wrong.
        score = table.columns["checker"].mean().item()
        print(f"{iteration + 1:4d}  reward {score:.3f}  |ratio - 1| {ratio_error:.0e}")
    print(f"after:  {100 * held_out_score(policy, held_out):.1f}% of held-out prompts drawn right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
