"""A small part of ``scripts/fuzz recipes`` and ``scripts/fuzz runs``."""

import recipes


def test_any_recipe_is_shown_or_refused_in_one_line_and_its_settings_come_back():
    tally = recipes.run_shown(0, 0.1, 600, pipelines=())
    assert not tally.faults, tally.faults[0]
    assert tally.ended["done"] > 5


def test_an_accepted_recipe_runs():
    tally = recipes.run_accepted(0, 0.15, 12, pipelines=())
    assert not tally.faults, tally.faults[0]
    assert tally.ended["done"] > 2
