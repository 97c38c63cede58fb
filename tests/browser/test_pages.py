"""The pages of comparisons and evaluations in a browser: they keep to themselves, fit, and can be read by everyone."""

import json
from pathlib import Path

import pytest
import torch

from grpaint.report.pages.comparison import comparison_page
from grpaint.report.pages.evaluation import evaluation_page
from open_pages import FOREIGN, OpenPage, assert_fits, assert_foreign_is_text

RESULTS = Path(__file__).parents[2] / "docs/results"


def _comparison() -> str:
    records = json.loads((RESULTS / "embedded/comparison.json").read_text())
    first = records[0]["method"]
    for record in records:
        record["method"] = record["method"].replace(first, FOREIGN)
    return comparison_page(records, title=f"🎨 {FOREIGN}", baseline=FOREIGN, missing=[FOREIGN])


def _evaluation() -> str:
    result = json.loads((RESULTS / "two-stage/evaluation.json").read_text())[0]
    result["sources"][FOREIGN] = result["sources"].pop("sft")
    for entry in result["measures"]:
        for measure in [entry, *entry.get("by_category", {}).values()]:
            for values in (measure["values"], measure["differences"]):
                values[FOREIGN] = values.pop("sft")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = dict.fromkeys(result["sources"], images)
    return evaluation_page(result, {"free generation": rows}, [FOREIGN, "a red circle", "🎨"])


PAGES = {"comparison": _comparison, "evaluation": _evaluation}


@pytest.fixture(scope="module", params=PAGES)
def file(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(PAGES[request.param]())
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_a_page_fits_and_everyone_can_read_it(file, width, scheme, page_of, assert_accessible):
    page = page_of(file, width=width, scheme=scheme)
    assert_fits(page)
    assert_foreign_is_text(page)
    assert_accessible(page)


def test_what_a_page_does_wrong_is_seen(browser, assert_accessible, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text(
        "<!doctype html><title>bad</title><img src='../elsewhere.png'><img src='https://example.invalid/x.png'>"
        "<script>alert('hello')</script><script>throw new Error('a fault')</script><div style='width:9000px'>wide</div>"
    )
    opened = OpenPage(browser, file, width=390, scheme="light")
    with pytest.raises(AssertionError, match="90"):
        assert_fits(opened.page)
    with pytest.raises(AssertionError, match="image-alt: <img src"):
        assert_accessible(opened.page)
    opened.close()
    assert "a dialog: hello" in opened.errors
    assert "raised a fault" in opened.errors
    assert [url.rpartition("/")[2] for url in opened.foreign_requests()] == ["elsewhere.png", "x.png"]
