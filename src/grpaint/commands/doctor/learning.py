"""Checks of updates: gradients, weights, the running average, the SFT loss, a GRPO reward, and the exported file."""

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
    """Check that every trainable tensor gets a gradient.

    It takes two updates: until the second matrix of an adapter has left its initial zeros, the first one gets none.
    """
    name = "gradients reach every trainable tensor"
    if not any(p.requires_grad for p in case.trainable.values()):
        return Finding(
            name, False, "nothing is trainable", "the adapter or the network is frozen: requires_grad is off"
        )
    with case.restored():
        case.learn(2)
        dead = [key for key, p in case.trainable.items() if p.grad is None or not p.grad.any()]
        nonfinite = [key for key, p in case.trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
        for p in case.trainable.values():
            p.grad = None
    evidence = f"{len(case.trainable) - len(dead)} of {len(case.trainable)} tensors"
    if nonfinite:
        evidence += f", {len(nonfinite)} with NaN or infinity, for example {nonfinite[0]}"
    return Finding(
        name,
        not dead and not nonfinite,
        evidence + (f"; none in {dead[0]}" if dead else ""),
        "layers that are frozen, or whose output nothing reads: name others in model.lora.targets; NaN: precision",
    )


def weights_move(case: Examination) -> Finding:
    """Check that an update changes the weights and the samples, but not the samples of the reference weights."""
    with case.restored():
        before, base = _copies(case), case.images("reference", 2)
        case.learn(2)
        moved = sum(not torch.equal(t, before[key]) for key, t in _copies(case).items())
        reference_stayed = torch.equal(case.images("reference", 2), base)
        samples_changed = not torch.equal(case.images("current", 2), base)
    return Finding(
        "weights move, the reference does not",
        moved == len(before) and samples_changed and reference_stayed,
        f"{moved} of {len(before)} tensors moved, samples {'changed' if samples_changed else 'did not change'}, the "
        f"reference {'stayed' if reference_stayed else 'changed'}",
        "the optimizer holds other tensors than the network, or the adapter is not switched on and off",
    )


def running_average(case: Examination) -> Finding:
    """Check that the running average follows the weights."""
    with case.restored():
        case.learn(1)
        case.policy.blend("average", 0.0)
        same = torch.equal(case.images("average", 2), case.images("current", 2))
        earlier = {key: t.clone() for key, t in case.policy.weights.copies["average"].items()}
        case.learn(1)
        case.policy.blend("average", 0.5)
        current = _copies(case)
        means = [(earlier[key] + current[key]) / 2 for key in current]
        averaged = case.policy.weights.copies["average"]
        errors = [(averaged[key] - mean).abs().max() for key, mean in zip(current, means, strict=True)]
        off = torch.stack(errors).max().item()
    return Finding(
        "running average",
        same and off <= 1e-6,
        f"{'equals' if same else 'differs from'} the weights that it was set to; halfway off by {off:.0e}",
        "the average is stale: blend() does not reach it, and what is evaluated and exported is an older model",
    )


def sft_lowers_loss(case: Examination, iterations: int = 12) -> Finding:
    """Check that SFT on white images lowers the denoising loss at new noise and turns predictions towards the target.

    The loss alone is not enough: a network with random weights lowers it by predicting smaller values.
    """
    loss, prompts = natural_loss(case.policy.path), case.prompts * 4
    white = torch.ones_like(case.images(count=1)).cpu().expand(len(prompts), -1, -1, -1)

    def batch(iteration: int) -> Rollout:
        return captioned(case.policy, white, prompts, iteration=iteration, seed=0)

    def loss_and_cosine() -> tuple[float, float]:
        zeros, unseen = torch.zeros(len(prompts)), [batch(10**6 + iteration) for iteration in range(4)]
        with torch.no_grad():
            losses = [term.loss.item() for part in unseen for term in loss(case.policy, part, zeros)]
            return sum(losses) / len(unseen), sum(_prediction_cosine(case, part) for part in unseen) / len(unseen)

    with case.restored():
        before, optimizer, scaler = loss_and_cosine(), case.optimizer(), case.scaler()
        for iteration in range(iterations):
            update(optimizer, scaler, loss(case.policy, batch(iteration), torch.zeros(len(prompts))))
        after = loss_and_cosine()
    return Finding(
        "SFT lowers the denoising loss",
        after[0] < before[0] and after[1] > before[1],
        f"{before[0]:.4f} -> {after[0]:.4f} on white images after {iterations} updates, cosine of the prediction with "
        f"the target {before[1]:+.3f} -> {after[1]:+.3f}",
        "the prediction type, its sign or the noise schedule is not the model's, or the learning rate is ten times too "
        "high",
    )


def _prediction_cosine(case: Examination, batch: Rollout) -> float:
    """Mean cosine between the predicted and the true noise, or noise minus image on a flow."""
    path, count = case.policy.path, len(batch.x0)
    times = path.times((torch.arange(count) + 0.5) / count).to(batch.x0.device)
    here = path.at(times.view(-1, *[1] * (batch.x0.ndim - 1)))
    eps = case.policy.noise((batch.seed, batch.iteration, "agreement"), range(count))
    prediction = case.policy.predict(here.alpha * batch.x0 + here.sigma * eps, here, batch.cond)
    flow = not isinstance(path, VpPath)
    predicted, true = prediction.eps - flow * prediction.x0, eps - flow * batch.x0
    return torch.cosine_similarity(predicted.flatten(1), true.flatten(1)).mean().item()


def grpo_raises_reward(case: Examination, iterations: int = 12, group: int = 16) -> Finding:
    """Check that a few GRPO updates with brightness as the reward make images brighter."""
    with case.restored():
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


def export_reloads(case: Examination) -> Finding:
    """Check that exported weights make the same images after they are loaded again."""
    with case.restored(), tempfile.TemporaryDirectory() as folder:
        file, base = FilePath(folder) / WEIGHTS_FILE, case.images(count=2)
        with case.restored():
            case.learn(2)
            tuned = case.images(count=2)
            write_weights(file, *case.policy.export("current"))
        loaded = _images_of_file(file, case)
    off, moved = (loaded - tuned).abs().mean().item(), (tuned - base).abs().mean().item()
    return Finding(
        "the saved file reloads to the same image",
        off <= max(1e-5, 0.05 * moved),
        f"pixels off by {off:.1e} where training moved them by {moved:.1e}",
        "names, scale (alpha / rank) or precision of the exported tensors are not what the loader reads",
    )


def _images_of_file(file: FilePath, case: Examination) -> Tensor:
    """Draw images with a saved file, loaded into the open model if possible, so that no second one is opened."""
    if isinstance(case.policy, DiffusersPolicy):
        case.policy.take(file)
        return case.images(count=2)
    policy = case.recipe.model.from_file(str(file)).load(case.runtime)
    policy.guidance = case.policy.guidance
    return dataclasses.replace(case, policy=policy).images(count=2)


def _copies(case: Examination) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in case.trainable.items()}
