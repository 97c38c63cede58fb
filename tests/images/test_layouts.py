"""The table of layouts in docs/data.md: what is read of each, what is left out, and what is said."""

import re
from collections import Counter
from pathlib import Path

import pytest

from grpaint.core.errors import ConfigError
from grpaint.images.data import ImageData
from grpaint.recipe.build import build
from grpaint.recipe.pieces import Data
from images.layouts import LAYOUTS, ROOTS

PAGE = Path(__file__).parents[2] / "docs/data.md"


def documented():
    """What the page says by layout: how many images are read, and what is left out or said."""
    section = PAGE.read_text(encoding="utf-8").partition("### Layouts")[2].partition("\n### ")[0]
    rows = [row.strip("|").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    return {name.strip(): (read.strip(), rest.strip()) for name, read, rest in rows[1:]}


def observed(root, settings):
    """The same, of the files."""
    table = {"kind": "images", "train": str(root), "held_out_path": str(root)} | settings
    data = build(Data, table, "data")[0]
    assert isinstance(data, ImageData)
    log = []
    try:
        data.prepare(log.append)
    except ConfigError as error:
        return "refused", str(error)
    (collection, _) = data.collections
    reasons = Counter(collection.left_out_files.values())
    assert all(f"{count} left out: {reason}" in log[0] for reason, count in reasons.items())
    tags = [sorted(text.split(", ")) for text in ("", *data.captions())]
    assert sorted(data.batch(1, 0, 0).prompts[0].text.split(", ")) in tags
    left_out = "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items()))
    return str(len(data.training)), left_out or "nothing"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_the_table_says(tmp_path, name):
    LAYOUTS[name].build(tmp_path / "set")
    read, rest = observed(tmp_path / "set" / ROOTS.get(name, ""), LAYOUTS[name].settings)
    expected_read, expected_rest = documented()[name]
    assert read == expected_read, rest
    if read == "refused":
        assert expected_rest in rest
        assert re.fullmatch(r"[^\n]{1,700}", rest)
    else:
        assert rest == expected_rest


def test_the_table_has_every_layout_and_no_other():
    assert list(documented()) == list(LAYOUTS)
    assert len(LAYOUTS) >= 30
