"""The meter and the errors that everything above shares."""

import pytest
import torch

from grpaint import core
from grpaint.core import ConfigError, GrpaintError, Meter, MissingExtra, RewardError, RunError


def test_a_forward_counts_one_and_its_backward_two_more() -> None:
    meter = Meter()
    with torch.no_grad():
        meter.forward(10)
    assert meter.counts == {"training": 10}
    meter.forward(10, networks=2)
    assert meter.counts == {"training": 70}


def test_accounts_are_separate_and_closed_after_a_failure() -> None:
    meter = Meter()

    def fail() -> None:
        with meter.account("evaluation"):
            meter.forward(3)
            raise KeyError

    with torch.no_grad():
        with pytest.raises(KeyError):
            fail()
        meter.forward(4)
    assert meter.counts == {"evaluation": 3, "training": 4}


def test_errors_form_one_tree() -> None:
    assert issubclass(MissingExtra, ConfigError)
    assert issubclass(RewardError, RunError)
    errors = [value for value in vars(core).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) == 7
    assert all(issubclass(error, GrpaintError) for error in errors)


def test_a_missing_extra_says_which_line_to_type() -> None:
    assert str(MissingExtra("LoRA", "lora")) == "LoRA needs an optional package: pip install 'grpaint[lora]'"


def test_every_exported_name_exists() -> None:
    assert sorted(core.__all__) == list(core.__all__)
    assert all(hasattr(core, name) for name in core.__all__)
