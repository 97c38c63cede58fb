"""The reference images that prompts carry."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.policy import Prompt


def references(prompts: Sequence[Prompt]) -> Float[Tensor, "b 3 h w"]:
    """The reference image of every prompt.

    Raises:
        ValueError: naming the first prompt that has none.
    """
    pictures = [prompt.reference for prompt in prompts if prompt.reference is not None]
    if len(pictures) < len(prompts):
        bare = next(prompt.text for prompt in prompts if prompt.reference is None)
        raise ValueError(f'the prompt "{bare}" has no reference image; set data.references = true')
    return torch.stack(pictures).float()
