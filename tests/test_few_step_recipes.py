"""The recipes of few steps start from a ratio of 1 and learn, on the layouts of the models that are sampled so."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grpaint.core.runtime import Runtime
from grpaint.learn import RewardTable
from grpaint.recipe.config import TrainRecipe, open_recipe, recipe_names
from grpaint.rollout import Closed, Plan, roll
from tiny_pipelines import save

# By model: the tiny pipeline, the model whose recipes it takes where it has none of its own, and its other settings.
LAYOUTS = {
    "sdxl-turbo": ("sdxl-turbo", "sdxl-turbo", ()),
    "lcm-dreamshaper-v7": ("sd15-lcm", "sdxl-turbo", ("model.guidance=8.5",)),
    "sdxl-lightning": ("sdxl", "sdxl-turbo", ("model.spacing=trailing",)),
    "flux-schnell": ("flux-schnell", "flux-schnell", ("model.tokens=16",)),
    "z-image-turbo": ("z-image", "flux-schnell", ()),
    "flux2-klein": ("flux2-klein", "flux-schnell", ("model.tokens=96",)),
}
STEPS = {"flow-grpo": (2, 4), "tafs-grpo": (2, 4), "awm": (1, 2, 4)}
SLOWER = ("sdxl-turbo", "sdxl-lightning")  # whose networks darken first at the rate of the others
# A case for each kind of model and method; the others are slow.
FIRST = (("sdxl-turbo", "awm", 1), ("sdxl-turbo", "tafs-grpo", 2), ("lcm-dreamshaper-v7", "flow-grpo", 4))
CASES = [
    pytest.param(*case, marks=[] if case in FIRST else pytest.mark.slow)
    for case in ((model, method, steps) for model in LAYOUTS for method in STEPS for steps in STEPS[method])
]


def opened(model: str, method: str, steps: int, root: Path) -> TrainRecipe:
    """The model's recipe of a method on its tiny pipeline."""
    pipeline, like, settings = LAYOUTS[model]
    owner = model if f"{model}/{method}" in recipe_names() else like
    folder = root / pipeline if (root / pipeline).exists() else save(pipeline, root)
    prompts = root / "prompts.txt"
    prompts.write_text("".join(f"a cat, number {n}\n" for n in range(8)))
    sets = [
        f"model.base={json.dumps(str(folder))}",
        'model.config=""',
        "model.height=16",
        "model.width=16",
        "model.embeddings=encode",
        "model.checkpointing=false",
        "model.batch=64",
        "model.vae_batch=64",
        "objective.minibatch=0",
        *(["objective.draws=2"] if method == "awm" else []),
        f"data.train={json.dumps(str(prompts))}",
        "data.held_out_share=0.5",
        f"plan.steps={steps}",
        "precision=fp32",
        *settings,
    ]
    recipe, _ = open_recipe(f"{owner}/{method}", "train", sets)
    assert isinstance(recipe, TrainRecipe)
    return recipe


def brightness(images: Tensor, *_: object) -> Tensor:
    return images.mean((1, 2, 3))


def gain(recipe: TrainRecipe, rate: float, updates: int) -> Tensor:
    """How much brighter images of fixed noise are after some updates, ``[32]``; the first begins from a ratio of 1."""
    policy = recipe.model.load(Runtime())
    prompts = recipe.data.prompts(2, 0, 0)
    judged = Plan(recipe.plan.steps, window=Closed(), outside=recipe.evaluate.sampler)

    def images() -> Tensor:
        with torch.no_grad():
            return brightness(policy.decode(roll(policy, prompts, 16, judged, iteration=0, seed=1).x0))

    before, optimizer = images(), torch.optim.Adam(policy.parameters(), lr=rate)
    for iteration in range(updates):
        policy.blend("behaviour", min(0.5, 0.05 * iteration))
        rollout = roll(policy, prompts, 16, recipe.plan, iteration=iteration, seed=0, score=brightness)
        advantage = recipe.advantage(RewardTable({"bright": brightness(policy.decode(rollout.x0))}), rollout)
        optimizer.zero_grad()
        for term in recipe.objective(policy, rollout, advantage):
            term.loss.backward()
            if iteration == 0:
                _check_begins_at_1(term.measures)
        optimizer.step()
    return images() - before


def _check_begins_at_1(measures: dict[str, Tensor]) -> None:
    """Before an update the steps' ratio is 1, or the likelihoods of finished images are those that sampled them."""
    if "terminal" not in measures:  # TAFS-GRPO's last step has none
        assert not measures["ratio_error" if "ratio_error" in measures else "log_ratio"].any()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.mark.parametrize(("model", "method", "steps"), CASES)
def test_a_recipe_of_few_steps_learns(model: str, method: str, steps: int, root: Path) -> None:
    rate = 0.003 if model in SLOWER else 0.01
    updates = 36 if method == "awm" else 24
    brighter = gain(opened(model, method, steps, root), rate, updates)
    assert brighter.mean() > 3 * brighter.std() / len(brighter) ** 0.5
