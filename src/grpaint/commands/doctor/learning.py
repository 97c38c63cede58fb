"""Checks of what an update does: gradients, weights, their average, two losses, and the file that is saved."""

import dataclasses
import tempfile
from pathlib import Path as FilePath

import torch
from torch import Tensor

from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.commands.doctor.examination import Examination, Finding, update
from grpaint.core.path import VpPath
from grpaint.judge import captioned, natural_loss
from grpaint.rollout.rollout import Rollout
from grpaint.storage.files import WEIGHTS_FILE, write_weights


def gradients(case: Examination) -> Finding:
    """Every trainable tensor gets a gradient (a second matrix of an adapter has to leave its zeros first)."""
    name = "gradients reach every trainable tensor"
    if not any(p.requires_grad for p in case.trainable.values()):
        return Finding(
            name, False, "nothing is trainable", "the adapter or the network is frozen: requires_grad is off"
        )
    with case.kept():
        case.learn(2)
        dead = [key for key, p in case.trainable.items() if p.grad is None or not p.grad.any()]
        wild = [key for key, p in case.trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
        for p in case.trainable.values():
            p.grad = None
    said = f"{len(case.trainable) - len(dead)} of {len(case.trainable)} tensors"
    if wild:
        said += f", {len(wild)} with NaN or infinity, for example {wild[0]}"
    return Finding(
        name,
        not dead and not wild,
        said + (f"; none in {dead[0]}" if dead else ""),
        "layers that are frozen, or whose output nothing reads: name others in model.lora.targets; NaN: precision",
    )


def moves(case: Examination) -> Finding:
    """An update changes the weights, and through them the samples; the reference stays."""
    with case.kept():
        before, base = _copies(case), case.images("reference", 2)
        case.learn(2)
        moved = sum(not torch.equal(t, before[key]) for key, t in _copies(case).items())
        same = torch.equal(case.images("reference", 2), base)
        told = not torch.equal(case.images("current", 2), base)
    return Finding(
        "weights move, the reference does not",
        moved == len(before) and told and same,
        f"{moved} of {len(before)} tensors moved, samples {'changed' if told else 'did not change'}, the reference "
        f"{'stayed' if same else 'changed'}",
        "the optimizer holds other tensors than the network, or the adapter is not switched on and off",
    )


def average(case: Examination) -> Finding:
    """The running average follows the weights."""
    with case.kept():
        case.learn(1)
        case.policy.blend("average", 0.0)
        same = torch.equal(case.images("average", 2), case.images("current", 2))
        there = {key: t.clone() for key, t in case.policy.weights.copies["average"].items()}
        case.learn(1)
        case.policy.blend("average", 0.5)
        now = _copies(case)
        halves = [(there[key] + now[key]) / 2 for key in now]
        kept = case.policy.weights.copies["average"]
        apart = [(kept[key] - half).abs().max() for key, half in zip(now, halves, strict=True)]
        off = torch.stack(apart).max().item()
    return Finding(
        "running average",
        same and off <= 1e-6,
        f"{'equals' if same else 'differs from'} the weights that it was set to; halfway off by {off:.0e}",
        "the average is stale: blend() does not reach it, and what is evaluated and exported is an older model",
    )


def fits(case: Examination, iterations: int = 12) -> Finding:
    """A few supervised updates on white images, at other noise: a lower denoising loss, and answers nearer the truth.

    The loss alone would not do: a network with random weights lowers it by answering less, in whatever direction.
    """
    loss, prompts = natural_loss(case.policy.path), case.prompts * 4
    white = torch.ones_like(case.images(count=1)).cpu().expand(len(prompts), -1, -1, -1)

    def batch(iteration: int) -> Rollout:
        return captioned(case.policy, white, prompts, iteration=iteration, seed=0)

    def measured() -> tuple[float, float]:
        nothing, unseen = torch.zeros(len(prompts)), [batch(10**6 + iteration) for iteration in range(4)]
        with torch.no_grad():
            losses = [term.loss.item() for part in unseen for term in loss(case.policy, part, nothing)]
            return sum(losses) / len(unseen), sum(_agreement(case, part) for part in unseen) / len(unseen)

    with case.kept():
        before, optimizer, scaler = measured(), case.optimizer(), case.scaler()
        for iteration in range(iterations):
            update(optimizer, scaler, loss(case.policy, batch(iteration), torch.zeros(len(prompts))))
        after = measured()
    return Finding(
        "SFT lowers the denoising loss",
        after[0] < before[0] and after[1] > before[1],
        f"{before[0]:.4f} -> {after[0]:.4f} on white images after {iterations} updates, cosine of the answer with the "
        f"truth {before[1]:+.3f} -> {after[1]:+.3f}",
        "the prediction type, its sign or the noise schedule is not the model's, or the learning rate is ten times too "
        "high",
    )


def _agreement(case: Examination, batch: Rollout) -> float:
    """Mean cosine of what the network says is noise (less image, on a flow) with what is."""
    path, count = case.policy.path, len(batch.x0)
    times = path.times((torch.arange(count) + 0.5) / count).to(batch.x0.device)
    here = path.at(times.view(-1, *[1] * (batch.x0.ndim - 1)))
    eps = case.policy.noise((batch.seed, batch.iteration, "agreement"), range(count))
    seen = case.policy.predict(here.alpha * batch.x0 + here.sigma * eps, here, batch.cond)
    flow = not isinstance(path, VpPath)
    said, true = seen.eps - flow * seen.x0, eps - flow * batch.x0
    return torch.cosine_similarity(said.flatten(1), true.flatten(1)).mean().item()


def learns(case: Examination, iterations: int = 12, group: int = 16) -> Finding:
    """A few GRPO updates make images brighter where brightness is the reward."""
    with case.kept():
        before = case.images(count=16).mean((1, 2, 3))
        case.learn(iterations, group)
        gain = case.images(count=16).mean((1, 2, 3)) - before
    mean, error = gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()
    return Finding(
        "GRPO raises a synthetic reward",
        mean > 2 * error,
        f"brightness {mean:+.4f} +- {error:.4f} after {iterations} updates",
        "the sign of the advantage or of the log-probability, prompts and rows that do not belong together, or a "
        "learning rate ten times of which still does nothing",
    )


def reload(case: Examination) -> Finding:
    """What is exported makes the same images after it is loaded again."""
    with case.kept(), tempfile.TemporaryDirectory() as place:
        file, base = FilePath(place) / WEIGHTS_FILE, case.images(count=2)
        with case.kept():
            case.learn(2)
            tuned = case.images(count=2)
            write_weights(file, *case.policy.export("current"))
        loaded = _drawn_by(file, case)
    off, moved = (loaded - tuned).abs().mean().item(), (tuned - base).abs().mean().item()
    return Finding(
        "the saved file reloads to the same image",
        off <= max(1e-5, 0.05 * moved),
        f"pixels off by {off:.1e} where training moved them by {moved:.1e}",
        "names, scale (alpha / rank) or precision of the exported tensors are not what the loader reads",
    )


def _drawn_by(file: FilePath, case: Examination) -> Tensor:
    """Images of a saved file: read into the model at hand where that can be done, so that no second one is opened."""
    if isinstance(case.policy, DiffusersPolicy):
        case.policy.take(file)
        return case.images(count=2)
    again = case.recipe.model.from_file(str(file)).load(case.runtime)
    again.guidance = case.policy.guidance
    return dataclasses.replace(case, policy=again).images(count=2)


def _copies(case: Examination) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in case.trainable.items()}
