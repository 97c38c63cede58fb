"""Train recipes on several numbers of ranks, and compare what each computed with what one process computes."""

import fcntl
import functools
import itertools
import json
import warnings

import pytest
import torch
from ranks import run_ranks

from grpaint.backends.scenes import Scenes
from grpaint.core.runtime import Runtime
from grpaint.scenes.world import SceneData

# An fp32 matrix product of fewer than four rows is another routine of the math library, with other rounding.
FEW_ROWS = 1e-6  # of the length of all images
# The last elements of a tensor, which fill no vector, go through another routine than the rest. It rounds otherwise in
# the sigmoid of the checker, for captions that name a relation, and in the mean over layers of the scorer's distance.
LAST_PLACE = 1.2e-7
RELATIONS = ("left of", "right of", "above", "below")
ROUNDING = {"fp32": 1e-4, "bf16": 0.05}  # where a network call of any number of rows has a rounding of its own
COUNTS = "cost/model_evaluations", "cost/reward_calls"


def train_everywhere(cases, sizes, folder, wait_s=600):
    """Train every case on each number of ranks; return a function that reads the numbers of a case and size once.

    Of several test processes that ask for one folder the first one trains, and the others wait for it: each number of
    ranks is trained once, and a training that failed fails for all.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "cases.json").write_text(json.dumps(cases))
        for size in sizes:
            trained = folder / f"trained-{size}"
            if not trained.exists():
                trained.write_text("failed")
                run_ranks(size, "training_rank:train_cases", str(folder), wait_s=wait_s)
                trained.write_text("done")
            assert trained.read_text() == "done", f"{size} ranks did not train: see the first failure"

    def numbers(name, size):
        return torch.load(folder / f"{name}-{size}.pt")

    return numbers


@functools.cache
def rounds_alike(precision):
    """Whether this machine gives an image the same bits in network calls of different numbers of rows, from four."""
    prompts, alike = SceneData().prompts(30, 0, 0), True
    for kind in ("velocity", "epsilon"):
        policy = Scenes(parametrisation=kind).load(Runtime("cpu", precision))
        here = policy.path.grid(4)[1]
        x = policy.noise((0, "rows"), torch.arange(len(prompts)))

        def predict(first, last, policy=policy, here=here, x=x):
            with torch.no_grad():
                return policy.predict(x[first:last], here, policy.encode(prompts[first:last])).x0

        whole = predict(0, len(prompts))
        for ends in (*itertools.pairwise((0, 4, 9, 15, 30)), *((0, rows) for rows in range(4, len(prompts)))):
            alike &= torch.equal(predict(*ends), whole[slice(*ends)])
    if not alike:
        text = f"this machine rounds {precision} by the number of rows: equality to the last bit is not asked of it"
        warnings.warn(text, stacklevel=2)
    return alike


def rounding(precision):
    """The relative difference of images that this machine may make: none where it rounds rows alike."""
    return 0.0 if rounds_alike(precision) else ROUNDING[precision]


def relative(one, other):
    """The largest relative difference of two lists of tensors."""
    return max(((a - b).norm() / a.norm().clamp(min=1e-12)).item() for a, b in zip(one, other, strict=True))


def largest(one, other):
    """The largest difference of two lists of tensors."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def length(one, other):
    """The length of the difference of two lists of tensors, seen as vectors."""
    return torch.stack([(a - b).norm() for a, b in zip(one, other, strict=True)]).norm().item()


def check_first_rollout(one, many, tolerance=0.0, precision="fp32"):
    """Images of the first iteration: bit-equal by default, and so are scores but for the exceptions above."""
    tolerance = max(tolerance, rounding(precision))
    images, others = one["updates"][0]["x0"], many["updates"][0]["x0"]
    assert torch.equal(one["updates"][0]["numbers"], many["updates"][0]["numbers"])
    if tolerance:
        assert relative([images], [others]) <= tolerance
    else:
        assert torch.equal(images, others)
    for first, other in zip(one["scores"][:1], many["scores"][:1], strict=True):
        assert first["texts"] == other["texts"]
        assert torch.equal(first["group"], other["group"])
        related = torch.tensor([any(word in text for word in RELATIONS) for text in first["texts"]])[first["group"]]
        for name in first.keys() - {"texts", "group"}:
            assert largest([first[name]], [other[name]]) <= max(tolerance, LAST_PLACE), name
            if not tolerance and name != "distance":
                exact = ~related if name == "checker" else torch.ones_like(related)
                assert torch.equal(first[name][exact], other[name][exact]), name


def check_lines(one, many, tolerance=1e-5, counts=COUNTS):
    """The first lines of a run's files by value, the last ones by the counts of what was computed."""
    for file, room in (("metrics.jsonl", tolerance), ("evaluations.jsonl", 10 * tolerance)):
        first, other = one["lines"][file][0], many["lines"][file][0]
        assert {key for key in other if not key.startswith("processes/")} == set(first)
        for key, value in first.items():
            if isinstance(value, float) and not key.startswith(("time/", "memory/")):
                assert other[key] == pytest.approx(value, rel=room, abs=room), key
    last = [run["lines"]["metrics.jsonl"][-1] for run in (one, many)]
    assert [last[0].get(name) for name in counts] == [last[1].get(name) for name in counts]


def threshold(one, many):
    """The first update that rounding turned round, and how: another image or row was chosen, or a hidden unit opened.

    The gradient of a unit of the built-in model jumps where its ReLU opens: one to three of a layer's 640 units then
    have nearly all of the layer's difference. Without one: the number of updates, and no reason.
    """
    for number, (first, other) in enumerate(zip(one["updates"], many["updates"], strict=True)):
        if first["x0"].shape != other["x0"].shape:
            return number, "other rows are left"
        apart = (first["x0"] - other["x0"]).flatten(1).square().mean(1).sqrt()
        if apart.max() > 0.02:
            return number, f"another image is row {int(apart.argmax())}"
        if not torch.equal(first["advantage"] != 0, other["advantage"] != 0):
            return number, "other rows have an advantage"
        for name, a, b in zip(one["names"], one["gradients"][number], many["gradients"][number], strict=True):
            units = (a - b).square().sum(1) if name.endswith("mlp.0.weight") else torch.zeros(3)
            if units.sum().sqrt() > 1e-5 * a.norm() and units.topk(3).values.sum() > 0.8 * units.sum():
                return number, f"unit {int(units.argmax())} of {name} opens"
    return len(one["updates"]), ""


def check_training(one, many):
    """Gradients of all updates, up to one that rounding turned round, and the weights at the end.

    Returns what turned it round, or an empty text; the weights are then only roughly the same.
    """
    assert len(one["gradients"]) == len(many["gradients"])
    last, reason = threshold(one, many)
    for number in range(max(1, last)):
        room = max(1e-4 if number else 1e-5, 10 * rounding("fp32"))
        assert relative(one["gradients"][number], many["gradients"][number]) <= room, number
    if not reason:
        assert largest(one["weights"], many["weights"]) <= max(1e-5, rounding("fp32"))
    assert length(one["weights"], many["weights"]) <= 0.5 * length(one["weights"], one["start"])
    return reason and f"update {last}: {reason}"


def check_equal(one, many, few_rows=0.0):
    """The first rollout, the lines, the gradients and the weights; return what rounding turned round."""
    check_first_rollout(one, many, few_rows)
    check_lines(one, many)
    return check_training(one, many)
