"""Which parameters an optimizer takes, and its state in a file."""

import copy
import math

import pytest
import torch
from torch import nn

from grpaint.core import CheckpointError
from grpaint.recipe.optim import Adamw, MuonAdamw, average_keep, load_optimizer_sets, optimizer_sets

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


SHAPES = {"blocks.0.weight": BIG, "blocks.0.bias": VECTOR, "blocks.1.weight": BIG, "table": SMALL}


def made(spec, names):
    """Parameters by name, in the order of ``names``, and their optimizers."""
    parameters = {name: nn.Parameter(torch.zeros(SHAPES[name])) for name in names}
    return parameters, spec.make(parameters.values(), 1e-2)


def step(parameters, optimizers, number):
    """Move every parameter by a gradient of its own, which is the same wherever it stands."""
    for name, parameter in parameters.items():
        generator = torch.Generator().manual_seed(100 * number + sorted(SHAPES).index(name))
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def indexed(optimizers):
    """The sets of the first 0.1, which knew a parameter by its place."""
    return {
        f"optimizer{number}": {
            f"{index}.{name}": tensor
            for index, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        for number, optimizer in enumerate(optimizers)
    }


@pytest.mark.parametrize("spec", [Adamw(weight_decay=0.1), MuonAdamw()])
@pytest.mark.parametrize("form", ["reordered", "in order", "by index"])
def test_an_optimizer_continues_from_its_state_in_a_file(spec, form):
    parameters, optimizers = made(spec, SHAPES)
    for number in range(3):
        step(parameters, optimizers, number)
    named = optimizer_sets(optimizers, parameters)
    assert {name.rpartition(".")[0] for tensors in named.values() for name in tensors} == SHAPES.keys()
    sets = copy.deepcopy(indexed(optimizers) if form == "by index" else named)  # as a file would
    others, loaded = made(spec, reversed(SHAPES) if form == "reordered" else SHAPES)
    for name, parameter in others.items():
        parameter.data.copy_(parameters[name].data)
    load_optimizer_sets(loaded, others, sets)
    again = optimizer_sets(loaded, others)
    assert again.keys() == named.keys()
    for group, tensors in named.items():
        assert again[group].keys() == tensors.keys()
        assert all(torch.equal(again[group][name], tensor) for name, tensor in tensors.items())
    step(parameters, optimizers, 3)
    step(others, loaded, 3)
    assert all(torch.equal(others[name], parameter) for name, parameter in parameters.items())


def test_numbered_parameters_are_not_read_as_the_old_form():
    spec = Adamw()
    parameters = {"1": nn.Parameter(torch.zeros(3)), "0": nn.Parameter(torch.zeros(3))}  # those of a ParameterList
    optimizers = spec.make(parameters.values(), 1e-2)
    parameters["0"].grad = torch.ones(3)
    optimizers[0].step()
    sets = optimizer_sets(optimizers, parameters)
    assert set(sets["optimizer.0"]) == {"0.step", "0.exp_avg", "0.exp_avg_sq"}
    load_optimizer_sets(optimizers, parameters, sets)
    assert optimizer_sets(optimizers, parameters)["optimizer.0"].keys() == sets["optimizer.0"].keys()
    assert parameters["1"] not in optimizers[0].state


def test_optimizers_that_share_parameters_or_have_their_own_keep_each_its_state():
    shared, own = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def make():
        return [torch.optim.AdamW([shared, own]), torch.optim.SGD([shared], momentum=0.9)]

    optimizers = make()
    shared.grad = own.grad = torch.ones(3)
    for optimizer in optimizers:
        optimizer.step()
    optimizers[0].state[shared]["ema.slow"] = torch.full((3,), 2.0)  # names of states may have dots
    sets = optimizer_sets(optimizers, {"blocks.weight": shared})
    assert {"blocks.weight.ema.slow", "#1.exp_avg"} <= sets["optimizer.0"].keys()
    loaded = make()
    load_optimizer_sets(loaded, {"blocks.weight": shared}, copy.deepcopy(sets))
    for before, after in zip(optimizers, loaded, strict=True):
        states, again = before.state_dict()["state"], after.state_dict()["state"]
        assert states.keys() == again.keys()
        for index, state in states.items():
            assert state.keys() == again[index].keys()
            assert all(torch.equal(again[index][key], value) for key, value in state.items())


def test_state_of_another_model_is_refused():
    parameters, optimizers = made(Adamw(), SHAPES)
    with pytest.raises(CheckpointError, match=r"of another model: it has head\.weight\.exp_avg;"):
        load_optimizer_sets(optimizers, parameters, {"optimizer.0": {"head.weight.exp_avg": torch.zeros(2)}})


def test_the_average_is_warmed_up_until_the_setting_acts():
    assert [average_keep(0.98, steps) for steps in (1, 2, 8)] == [2 / 11, 3 / 12, 9 / 18]
    assert average_keep(0.98, 439) < 0.98 == average_keep(0.98, 440) == average_keep(0.98, 10**6)
    assert average_keep(0.0, 1) == 0.0  # the average is the current weights
    initial = math.prod(average_keep(0.999, steps) for steps in range(1, 6))
    assert initial == pytest.approx(math.factorial(10) * math.factorial(6) / math.factorial(15))  # it telescopes
    assert initial == pytest.approx(0.002, rel=0.01)
