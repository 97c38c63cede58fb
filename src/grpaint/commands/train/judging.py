"""Judge the model of a run: its evaluations, and the held-out pictures that it draws in between."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from grpaint.core.errors import RewardError
from grpaint.core.policy import PeopleReward, Prompt
from grpaint.core.user_code import user_code
from grpaint.judge import (
    Judgement,
    best_guided,
    denoising_loss,
    evaluation_line,
    judge_prompts,
    judging_rewards,
    sample_divided,
    score_key,
)
from grpaint.measures.intervals import preference_entries, rounded
from grpaint.measures.score import with_deployment
from grpaint.parallel.world import World
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.pieces import Model
from grpaint.run.pictures import Drawing


@dataclass(frozen=True)
class RecipeJudge:
    """Judges by a recipe's ``[evaluate]`` and ``[deploy]``, its data and its rewards.

    The processes of ``world`` divide the prompts.
    """

    recipe: Recipe
    policy: Model
    world: World

    def evaluate(self, iteration: int) -> tuple[dict[str, Any], Drawing]:
        """Return the line of an evaluation; at iteration 0 the base is also judged at its best guidance."""
        recipe, policy, world = self.recipe, self.policy, self.world
        rewards, settings, deployed = judging_rewards(recipe), recipe.evaluate, recipe.deployed
        quiet = replace(settings, pictures=0) if deployed else settings  # pictures are drawn as deployed
        judgement = judge_prompts(policy, recipe.data, quiet, self._prompts, rewards, world=world)
        line = evaluation_line(recipe.data, settings, judgement)
        if recipe.data.captioned:
            line["denoising_loss"] = denoising_loss(policy, recipe.data, settings, "average", world)
        if iteration == 0 and rewards:
            line["base_guided"] = best_guided(policy, recipe.data, settings, rewards, world)
        if deployed:
            judgement = judge_prompts(policy, recipe.data, deployed, self._prompts, rewards, world=world)
            line = with_deployment(line, evaluation_line(recipe.data, deployed, judgement))
        return line | self._preferences(iteration, judgement), self._drawing(judgement, evaluated=True)

    def draw(self) -> Drawing:
        """Draw the first held-out prompts alone, with their scores."""
        prompts = self._prompts[: self.recipe.evaluate.pictures]
        rewards = judging_rewards(self.recipe)
        judgement = judge_prompts(
            self.policy, self.recipe.data, self.recipe.drawing, prompts, rewards, world=self.world
        )
        return self._drawing(judgement, evaluated=False)

    def _preferences(self, iteration: int, judgement: Judgement) -> dict[str, Any]:
        """Return the share of people who prefer the pictures to the base's, if a reward of weight 0 asks them.

        The base itself has a half. Values by prompt are left out if a picture has no answer.
        """
        rewards = {} if isinstance(self.recipe, SftRecipe) else self.recipe.rewards
        line: dict[str, Any] = {}
        for name, item in rewards.items():
            if isinstance(item.reward, PeopleReward) and not item.weight:
                prompts = judgement.prompts[: len(judgement.images)]
                shares = torch.full((len(prompts),), 0.5)
                if iteration:
                    before = sample_divided(self.policy, prompts, self.recipe.drawing, self.world, "reference")
                    with user_code(f"reward {name}", RewardError):
                        shares = item.reward.prefer(before, judgement.images / 255, prompts)
                line |= preference_entries(f"reward/{name}", shares)
        return line

    @cached_property
    def _prompts(self) -> list[Prompt]:
        settings = self.recipe.evaluate
        return list(self.recipe.data.held_out(settings.prompts, settings.seed))

    def _drawing(self, judgement: Judgement, *, evaluated: bool) -> Drawing:
        count, data = len(judgement.images), self.recipe.data
        prompts = judgement.prompts[:count]
        scores = {name: rounded(values[:count]) for name, values in judgement.measures.items()} if count else {}
        return Drawing(
            [prompt.text for prompt in prompts],
            [data.category(prompt) for prompt in prompts],
            score_key(data, judgement.measures),
            scores,
            judgement.images,
            evaluated,
        )
