"""The reference images that prompts carry."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpaint.core.policy import Prompt


def references(prompts: Sequence[Prompt]) -> Float[Tensor, "b 3 h w"]:
    """Stack the reference images of prompts, in fp32.

    Raises:
        ValueError: if a prompt has none; the message names the first such prompt.
    """
    pictures = [prompt.reference for prompt in prompts if prompt.reference is not None]
    if len(pictures) < len(prompts):
        text = next(prompt.text for prompt in prompts if prompt.reference is None)
        raise ValueError(f'the prompt "{text}" has no reference image; set data.references = true')
    return torch.stack(pictures).float()
