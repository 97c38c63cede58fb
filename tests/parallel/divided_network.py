"""What a rank does in the tests of a divided network: random programs of calls, and what one process would compute."""

import copy
import os
import random
import sys
import time
from pathlib import Path

import torch
from torch import nn

from grpaint.backends.weights import WeightSets
from grpaint.core.errors import RankLost, RunError
from grpaint.parallel.sharding import SETS


class Network(nn.Module):
    """Two blocks with a trained matrix beside a frozen one, as adapters have it."""

    _no_split_modules = ("Block",)

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(3, 5)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.adapter = nn.Linear(5, 5, bias=False)

    def forward(self, x):
        return x + torch.tanh(self.frozen(x) + self.adapter(x))


def divided(world):
    """The network whole, the same divided, its trained parameters, and what divides it."""
    torch.manual_seed(0)
    network = Network()
    network.enter.requires_grad_(False)
    whole, sharding = copy.deepcopy(network), world.sharding("all")
    trained = [block.adapter.weight for block in network.blocks]
    sharding.divide(network, trained, "cpu")
    sharding.padding = lambda _: network(torch.zeros(1, 3))
    return whole, network, trained, sharding


def mistakes(world):
    """Return when each rank had its turn, what a second backward pass raises, and what the death of a rank does."""
    return turns(world), two_backward_passes(world), a_rank_dies(world)


def turns(world):
    """When each rank began and ended what they do in turn, in the order of ranks."""
    world.sharding("all")

    def work():
        begin = time.monotonic()
        time.sleep(0.05)
        return begin, time.monotonic()

    return world.gather_values(world.in_turn(work))


def programs(world, rounds):
    """Run random programs on every rank, on a network of which a part is trained, and then one that is trained whole.

    Return the largest difference of each from the network that one rank has whole, and the calls of the first.
    """
    apart, calls = frozen_programs(world, rounds)
    return apart, trained_programs(world, rounds), calls


def frozen_programs(world, rounds):
    """Run random programs; return the largest difference of outputs and gradients, and the calls."""
    whole, network, trained, sharding = divided(world)
    draw, apart, calls = random.Random(world.rank), 0.0, 0
    for _ in range(rounds):
        pending = []
        for _ in range(draw.randrange(9) if draw.random() < 0.8 else 0):
            choice = draw.choice(["forward", "graph", "backward", "wait"])
            if choice == "backward" and pending:
                output, reference = pending.pop(draw.randrange(len(pending)))
                for result in (output, reference):
                    result.square().sum().backward()
            elif choice == "wait":
                world.meanwhile(lambda: torch.rand(1))
            else:
                x = torch.randn(1 + draw.randrange(4), 3)
                with torch.set_grad_enabled(choice == "graph"):
                    output, reference = sharding.call(lambda x=x: network(x)), whole(x)
                apart, calls = max(apart, (output - reference).abs().max().item()), calls + 1
                if choice == "graph":
                    pending.append((output, reference))
        world.sum_gradients(trained)
        references = [block.adapter.weight for block in whole.blocks]
        world.sum_gradients(references)
        for one, other in zip(trained, references, strict=True):
            assert (one.grad is None) <= (other.grad is None)
            if other.grad is not None:
                apart = max(apart, (one.grad - other.grad).abs().max().item())
            with torch.no_grad():
                change = 0.0 if other.grad is None else 0.1 * other.grad
                one.add_(change)
                other.add_(change)
            one.grad = other.grad = None
    return apart, calls


def trained_programs(world, rounds):
    """Run random programs of calls with random sets of weights on a network that is trained whole, and divided.

    Return the largest difference of outputs, gradients and weights from the network that each rank has whole.
    """
    torch.manual_seed(0)
    network = Network().requires_grad_(True)
    whole, sharding = copy.deepcopy(network), world.sharding("all")
    sharding.divide(network, (), "cpu")
    sets = WeightSets(network, sharding.shares(dict(network.named_parameters())), adapters=False, sharding=sharding)
    references = WeightSets(whole, dict(whole.named_parameters()), adapters=False)
    for weights in (sets, references):
        weights.blend("behaviour", 0.0)

    def pad(weights):
        with sets.only(weights):
            return network(torch.zeros(1, 3))

    sharding.padding = pad
    draw, apart = random.Random(world.rank), 0.0
    for _ in range(rounds):
        for _ in range(draw.randrange(6)):
            x, weights = torch.randn(1 + draw.randrange(4), 3), draw.choice(SETS)
            with torch.set_grad_enabled(weights == "current"):
                with sets.use(weights):
                    output = sharding.call(lambda x=x: network(x), sets.active)
                with references.use(weights):
                    reference = whole(x)
            apart = max(apart, (output - reference).abs().max().item())
            if weights == "current":
                for result in (output, reference):
                    result.square().sum().backward()
        world.sum_gradients(list(sets.trainable.values()))
        for name, share in sets.trainable.items():
            parameter = references.trainable[name]
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradient = world.gather({"gradient": own[None]})["gradient"].sum(0)
            if share.grad is not None:
                apart = max(apart, (share.grad - sharding.part(gradient)).abs().amax().item() if len(share) else 0)
            with torch.no_grad():
                share.sub_(0.01 * sharding.part(gradient))
                parameter.sub_(0.01 * gradient)
            share.grad = parameter.grad = None
        for weights in (sets, references):
            weights.blend("average", 0.5)
            weights.blend("behaviour", 0.8)
    for name, tensors in references.tensors().items():
        late = sets.whole(sets.tensors()[name])
        apart = max([apart, *((late[key].read() - tensor).abs().max().item() for key, tensor in tensors.items())])
    distinct = references.tensors()
    assert len({tuple(tensors["enter.weight"].flatten().tolist()) for tensors in distinct.values()}) == len(SETS)
    return apart


def a_rank_dies(world):
    """Rank 1 dies while others call the network; return what they raise."""
    _, network, _, sharding = divided(world)
    if world.rank == 1:
        sharding.call(lambda: network(torch.zeros(1, 3)))
        Path(sys.argv[3], "1.json").write_text("null")  # as if it had ended well, so that nothing else ends rank 0
        os._exit(0)
    try:
        while True:
            sharding.call(lambda: network(torch.zeros(1, 3)))
    except RankLost as error:
        return str(error)


def two_backward_passes(world):
    """Return what a second backward pass through one call raises."""
    _, network, _, sharding = divided(world)
    output = sharding.call(lambda: network(torch.zeros(1, 3)))
    output.sum().backward(retain_graph=True)
    try:
        output.sum().backward()
    except RunError as error:
        return str(error)
