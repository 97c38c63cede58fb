"""The doctor names each fault that is put into a model that it would pass."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer.testing

from grpaint.cli import app
from grpaint.commands.doctor import command as doctor
from grpaint.core import Ddim, FlowPath, FlowSde, Point, Prediction
from grpaint.core.runtime import Runtime
from grpaint.parallel.world import ONE
from grpaint.rollout import Plan
from tiny_pipelines import recipe, save
from tiny_runs import write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd3", tmp_path_factory.mktemp("pipelines"))


@dataclasses.dataclass(frozen=True)
class Scrambled(FlowPath):
    """The right noise levels in the wrong order."""

    def grid(self, steps: int) -> tuple[Point, ...]:
        first, second, third, *rest = super().grid(steps)
        return (first, third, second, *rest)


Case = doctor.Examination


def wrong_order(case: Case) -> None:
    case.policy.path = Scrambled(shift=3.0, spacing="sd3")


def frozen(case: Case) -> None:
    for name, parameter in case.trainable.items():
        parameter.requires_grad_("to_q" not in name)


def no_noise(case: Case) -> None:
    plain = case.policy.noise
    case.policy.noise = lambda key, rows: plain(key, rows) * ("start" in key)  # type: ignore[method-assign]


def other_order(case: Case) -> None:
    plain = case.policy.predict

    def predict(x: Any, here: Any, cond: Any, weights: Any = "current") -> Any:
        replayed = torch.is_grad_enabled()
        return plain(x, here, cond.rows(torch.arange(len(cond)).flip(0)) if replayed else cond, weights)

    case.policy.predict = predict  # type: ignore[method-assign]


def hardly_any_noise(case: Case) -> None:
    """Steps whose noise is of the size of what fp32 rounds."""
    case.plan = dataclasses.replace(case.plan, sampler=FlowSde(1e-6))


def stale(case: Case) -> None:
    case.policy.blend = lambda into, keep: None  # type: ignore[method-assign]


def blind_optimizer(case: Case) -> None:
    case.policy.parameters = lambda: iter([torch.nn.Parameter(torch.zeros(1))])  # type: ignore[method-assign]


def wrong_sign(case: Case) -> None:
    """What the network gives is read with another sign where it learns than where it is measured."""
    plain = case.policy.predict

    def predict(x: Any, here: Any, cond: Any, weights: Any = "current") -> Prediction:
        seen = plain(x, here, cond, weights)
        return Prediction(-seen.x0, -seen.eps) if torch.is_grad_enabled() else seen

    case.policy.predict = predict  # type: ignore[method-assign]


def still_optimizer(case: Case) -> None:
    case.optimizer = lambda: torch.optim.SGD(case.policy.parameters(), lr=0.0)  # type: ignore[method-assign, assignment]


def doubled_file(case: Case) -> None:
    plain = case.policy.export

    def export(weights: Any = "average") -> Any:
        tensors, header = plain(weights)
        return {name: 2 * tensor if ".lora_B." in name else tensor for name, tensor in tensors.items()}, header

    case.policy.export = export  # type: ignore[method-assign]


FAULTS: dict[Callable[[Case], None], tuple[Callable[[Case], doctor.Finding], str]] = {
    wrong_order: (doctor.sampler_parity, "their order"),
    frozen: (doctor.gradients, "frozen"),
    no_noise: (doctor.step_noise, "dropped"),
    other_order: (doctor.initial_ratio, "order of rows"),
    hardly_any_noise: (doctor.noise_floor, "train steps with more noise"),
    stale: (doctor.running_average, "stale"),
    blind_optimizer: (doctor.weights_move, "optimizer holds other tensors"),
    wrong_sign: (doctor.sft_lowers_loss, "its sign"),
    still_optimizer: (doctor.grpo_raises_reward, "still does nothing"),
    doubled_file: (doctor.export_reloads, r"scale (alpha / rank)"),
}


def opened(folder: Path, precision: Any = "fp32", **model: Any) -> Case:
    runtime, settings = Runtime(precision=precision), recipe(folder, **model)
    return doctor.Examination(settings, settings.model.load(runtime), runtime)


def test_every_check_has_its_fault() -> None:
    assert {check for check, _ in FAULTS.values()} == set(doctor.CHECKS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named(folder: Path, fault: Callable[[Case], None]) -> None:
    case = opened(folder)
    check, cause = FAULTS[fault]
    if check in (doctor.sft_lowers_loss, doctor.grpo_raises_reward):
        check = functools.partial(check, iterations=6)  # half of what the command does
    good = check(case)
    assert good.passed, good
    fault(case)
    finding = check(case)
    assert finding.passed is False
    assert cause in finding.fix


def test_a_ratio_that_is_no_number_is_no_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = opened(folder)
    answers = iter([torch.zeros(2), torch.full((2,), torch.nan)])
    monkeypatch.setattr(doctor.Examination, "replay", lambda self, rollout, part: next(answers))
    monkeypatch.setattr(doctor.Examination, "rollout", lambda self: SimpleNamespace(transitions=[None, None]))
    assert doctor.initial_ratio(case).passed is False


def test_parity_is_not_checked_at_steps_that_stock_ddim_misses(tmp_path: Path) -> None:
    settings = recipe(save("sd15-v", tmp_path))
    runtime = Runtime()
    policy = settings.model.load(runtime)
    for steps, passed in ((10, True), (30, None)):
        case = doctor.Examination(dataclasses.replace(settings, plan=Plan(steps, Ddim(1.0))), policy, runtime)
        assert doctor.sampler_parity(case).passed is passed


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_a_wrong_order_still_shows(folder: Path, precision: str, guidance: float) -> None:
    case = opened(folder, precision, guidance=guidance)
    assert doctor.sampler_parity(case).passed
    assert not any(parameter.dtype == torch.float32 for parameter in case.policy.pipe.text_encoder.parameters())  # type: ignore[attr-defined]
    wrong_order(case)
    assert doctor.sampler_parity(case).passed is False


def test_in_fp16_it_learns_with_scaled_gradients(folder: Path) -> None:
    case = opened(folder, "fp16")
    assert case.scaler().is_enabled()
    assert doctor.weights_move(case).passed
    assert doctor.sft_lowers_loss(case).passed


def test_no_second_model_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = opened(folder)
    monkeypatch.setattr(type(case.recipe.model), "load", None)
    assert all(check(case).passed for check in (doctor.sampler_parity, doctor.export_reloads))


def test_checks_leave_the_weights_as_they_were(folder: Path) -> None:
    case = opened(folder)
    before = {name: p.detach().clone() for name, p in case.policy.weights.trainable.items()}
    for check in doctor.CHECKS:
        check(case)
    assert all(torch.equal(p, before[name]) for name, p in case.policy.weights.trainable.items())


def test_doctor_prints_a_line_per_check_and_exits_with_1_if_one_fails(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.initial_ratio, doctor.step_noise))
    monkeypatch.setattr(doctor.examine, "__defaults__", (doctor.CHECKS, ONE))
    write_recipe(tmp_path, str(folder), "flow-sde")
    run = typer.testing.CliRunner().invoke
    good = run(app, ["doctor", "mine.toml"])
    assert good.exit_code == 0, good.output
    model, *lines = good.output.splitlines()
    assert model == f"model  sd3 from {folder}, predicts velocity"
    assert [line[:6] for line in lines] == ["PASS  ", "PASS  "]
    monkeypatch.setattr(doctor.Examination, "clip", 0.0)
    monkeypatch.setattr(doctor.Examination, "replay", lambda self, rollout, part: torch.ones(1))
    bad = run(app, ["doctor", "mine.toml", "--json"])
    assert bad.exit_code == 1
    assert [json.loads(line)["passed"] for line in bad.output.splitlines()] == [False, True]
