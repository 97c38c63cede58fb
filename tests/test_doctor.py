"""The doctor names each fault that is put into a model that it would pass."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing

from grpaint import doctor
from grpaint.backends.diffusers import DiffusersPolicy
from grpaint.backends.runtime import Runtime
from grpaint.cli import app
from grpaint.core import FlowPath, Point
from tiny_pipelines import recipe, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd3", tmp_path_factory.mktemp("pipelines"))


@dataclasses.dataclass(frozen=True)
class Scrambled(FlowPath):
    """The right noise levels in the wrong order."""

    def grid(self, steps: int) -> tuple[Point, ...]:
        first, second, third, *rest = super().grid(steps)
        return (first, third, second, *rest)


def wrong_order(policy: DiffusersPolicy) -> None:
    policy.path = Scrambled(shift=3.0, spacing="sd3")


def frozen(policy: DiffusersPolicy) -> None:
    for name, parameter in policy.weights.trainable.items():
        parameter.requires_grad_("to_q" not in name)


def no_noise(policy: DiffusersPolicy) -> None:
    plain = policy.noise
    policy.noise = lambda key, rows: plain(key, rows) * ("start" in key)  # type: ignore[method-assign]


def other_order(policy: DiffusersPolicy) -> None:
    plain = policy.predict

    def predict(x: Any, here: Any, cond: Any, weights: Any = "current") -> Any:
        replayed = torch.is_grad_enabled()
        return plain(x, here, cond.rows(torch.arange(len(cond)).flip(0)) if replayed else cond, weights)

    policy.predict = predict  # type: ignore[method-assign]


def stale(policy: DiffusersPolicy) -> None:
    policy.blend = lambda into, keep: None  # type: ignore[method-assign]


def blind_optimizer(policy: DiffusersPolicy) -> None:
    policy.parameters = lambda: iter([torch.nn.Parameter(torch.zeros(1))])  # type: ignore[method-assign]


FAULTS: dict[Callable[[DiffusersPolicy], None], tuple[str, str]] = {
    wrong_order: ("sampler parity with the stock pipeline", "their order"),
    frozen: ("gradients reach every trainable tensor", "frozen"),
    no_noise: ("noise of the steps", "dropped"),
    other_order: ("ratio before an update", "order of rows"),
    stale: ("running average", "stale"),
    blind_optimizer: ("weights move, the reference does not", "optimizer holds other tensors"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named(folder: Path, fault: Callable[[DiffusersPolicy], None]) -> None:
    case = doctor.Examination(recipe(folder), recipe(folder).model.load(Runtime()), Runtime())
    assert isinstance(case.policy, DiffusersPolicy)
    name, cause = FAULTS[fault]
    check = next(check for check in doctor.CHECKS if check(case).check == name)
    assert check(case).passed
    fault(case.policy)
    finding = check(case)
    assert finding.passed is False
    assert cause in finding.mend


def test_checks_leave_the_weights_as_they_were(folder: Path) -> None:
    case = doctor.Examination(recipe(folder), recipe(folder).model.load(Runtime()), Runtime())
    before = {name: p.detach().clone() for name, p in case.policy.weights.trainable.items()}
    for check in doctor.CHECKS:
        check(case)
    assert all(torch.equal(p, before[name]) for name, p in case.policy.weights.trainable.items())


def test_the_command_prints_a_line_each_and_fails_where_one_fails(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.ratio, doctor.noise))
    monkeypatch.setattr(doctor.examine, "__defaults__", ((doctor.ratio, doctor.noise),))
    Path("mine.toml").write_text(
        f"""
        [model]
        kind = "diffusers"
        base = "{folder}"
        lora = {{ rank = 4 }}
        [data]
        kind = "scenes"
        [plan]
        steps = 3
        sampler = {{ kind = "flow-sde" }}
        [rewards.checker]
        kind = "scenes-checker"
        [train]
        iterations = 1
        learning_rate = 1e-3
        """
    )
    run = typer.testing.CliRunner().invoke
    good = run(app, ["doctor", "mine.toml"])
    assert good.exit_code == 0, good.output
    assert [line[:6] for line in good.output.splitlines()] == ["PASS  ", "PASS  "]
    monkeypatch.setattr(doctor.Examination, "clip", 0.0)
    monkeypatch.setattr(doctor.Examination, "replay", lambda self, rollout, part: torch.ones(1))
    bad = run(app, ["doctor", "mine.toml", "--json"])
    assert bad.exit_code == 1
    assert [json.loads(line)["passed"] for line in bad.output.splitlines()] == [False, True]
