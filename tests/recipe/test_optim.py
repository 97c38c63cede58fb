"""Which parameters an optimizer takes."""

import pytest
import torch
from torch import nn

from grpaint.recipe.optim import MuonAdamw

BIG, SMALL, VECTOR = (128, 96), (16, 96), (96,)


@pytest.mark.parametrize(
    ("shapes", "kinds"),
    [
        ([BIG, SMALL, VECTOR], [torch.optim.Muon, torch.optim.AdamW]),
        ([SMALL, VECTOR], [torch.optim.AdamW]),  # those of an adapter
        ([BIG], [torch.optim.Muon]),
    ],
)
def test_muon_takes_large_matrices_and_adamw_the_rest(shapes, kinds):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    made = MuonAdamw().make(iter(parameters), 1e-3)
    assert [type(optimizer) for optimizer in made] == kinds
    taken = [p for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in taken} == {id(p) for p in parameters}
    assert len(taken) == len(parameters)
