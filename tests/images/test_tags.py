"""Booru tags: read, arranged, refused; as prose, and as a reward."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt, Reward
from grpaint.images.tags import ImageTags, TagSettings, read_implications, read_tags, sentence, underscores_to_spaces
from grpaint.recipe.build import build
from grpaint.rewards.tags import TagRecall

DANBOORU = {
    "id": 1,
    "rating": "s",
    "score": 41,
    "tag_string": "1girl long_hair ^_^ hatsune_miku vocaloid wlop highres",
    "tag_string_general": "1girl long_hair ^_^",
    "tag_string_character": "hatsune_miku",
    "tag_string_copyright": "vocaloid",
    "tag_string_artist": "wlop",
    "tag_string_meta": "highres",
}


def caption(fields, draw=None, scores=(), **settings):
    tags = TagSettings(**settings)
    return tags.caption(tags.arrange(read_tags(fields, "text", "a.png"), tags.thresholds(scores)), draw)


def test_categories_come_in_their_order_and_underscores_as_spaces_save_in_emoticons():
    assert caption(DANBOORU) == "wlop, vocaloid, hatsune miku, 1girl, long hair, ^_^, highres"
    assert caption(DANBOORU, categories=("character", "general")) == "hatsune miku, 1girl, long hair, ^_^"
    assert caption(DANBOORU, categories=("general",), underscores="keep", separator=" ") == "1girl long_hair ^_^"
    assert caption(DANBOORU, exclude=("long_hair", "highres")) == "wlop, vocaloid, hatsune miku, 1girl, ^_^"
    assert [underscores_to_spaces(tag) for tag in ("o_o", "blue_eyes", ">_<", "_")] == ["o_o", "blue eyes", ">_<", " "]


def test_gallery_dl_lists_and_plain_captions_are_read_too():
    lists = {"tags_general": ["1girl", "long_hair"], "tags_artist": ["wlop"]}
    assert caption(lists) == "wlop, 1girl, long hair"
    assert caption({"tags": "a_b c"}) == "a b, c"
    assert caption({"text": "1girl, long hair , smile"}) == "1girl, long hair, smile"
    assert caption({"text": "sky, sky"}) == "sky"
    assert read_tags({}, "text", "a.png").by_category == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tag_string_general": 5}, r"a.png: tags must be a text or a list of texts, not 5"),
        ({"tags": ["a", 1]}, r"a.png: tags must be"),
        ({"tags": "a", "rating": "x"}, r'a.png: rating = "x": no rating'),
        ({"tags": "a", "rating": ["g"]}, r"a.png: rating = .*: no rating"),
        ({"tags": "a", "score": "41"}, r"a.png: score = '41': must be a number"),
    ],
)
def test_invalid_sidecars_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        read_tags(fields, "text", "a.png")


def test_rating_and_quality_are_tags_that_are_made():
    settings = {"categories": ("quality", "rating", "general"), "quality": {"best": 0.9, "good": 0.5, "worst": 0.0}}
    scores = list(range(100))
    words = [caption(DANBOORU | {"score": score}, scores=scores, **settings).split(", ")[:2] for score in (90, 89, 49)]
    assert words == [["best", "sensitive"], ["good", "sensitive"], ["worst", "sensitive"]]
    assert caption(DANBOORU | {"score": -9}, scores=scores, **settings).startswith("worst")  # lower than all training
    by_score = settings | {"quality": {"liked": 40}, "quality_by": "score"}
    assert caption(DANBOORU, **by_score).startswith("liked, sensitive")
    assert caption(DANBOORU | {"score": 39}, **by_score).startswith("sensitive, 1girl")


def test_images_are_chosen_by_rating_and_score():
    tags = TagSettings(ratings=("general", "sensitive"), least_score=40)
    assert tags.exclusion_reason(read_tags(DANBOORU, "text", "a"), "a") is None
    assert tags.exclusion_reason(ImageTags({}, "explicit", 50), "a") == "rated explicit"
    assert tags.exclusion_reason(ImageTags({}, "general", 39), "a") == "scored below 40"
    with pytest.raises(ConfigError, match=r"a.png: has no score, which data.tags needs"):
        tags.exclusion_reason(ImageTags({}, "general"), "a.png")
    with pytest.raises(ConfigError, match="has no rating"):
        TagSettings(categories=("rating",)).exclusion_reason(ImageTags({}), "a.png")


def test_the_first_tags_stay_and_the_rest_are_shuffled():
    fields = {"tags_artist": ["wlop"], "tags_general": [f"t{n}" for n in range(8)], "tags_meta": ["m0", "m1"]}
    draws = [caption(fields, random.Random(n), shuffle="all", keep_first=3).split(", ") for n in range(200)]
    assert all(words[:3] == ["wlop", "t0", "t1"] and len(words) == 11 for words in draws)
    assert {words[3] for words in draws} == {*(f"t{n}" for n in range(2, 8)), "m0", "m1"}
    within = [caption(fields, random.Random(n), shuffle="within").split(", ") for n in range(200)]
    assert all(words[0] == "wlop" and set(words[-2:]) == {"m0", "m1"} for words in within)
    assert {words[1] for words in within} == {f"t{n}" for n in range(8)}
    assert caption(fields, random.Random(5), shuffle="all") == caption(fields, random.Random(5), shuffle="all")
    assert caption(fields, None, shuffle="all", dropout=0.9) == caption(fields)


def test_tags_are_dropped_at_their_rate_and_one_always_stays():
    fields = {"tags": [f"t{n}" for n in range(10)]}
    counts = Counter(
        tag for n in range(1000) for tag in caption(fields, random.Random(n), dropout=0.3, keep_first=1).split(", ")
    )
    assert counts["t0"] == 1000
    assert [counts[f"t{n}"] / 1000 for n in range(1, 10)] == pytest.approx([0.7] * 9, abs=0.05)
    assert all(caption({"tags": "a b"}, random.Random(n), dropout=0.95) for n in range(200))


def test_implied_tags_are_removed_or_added(tmp_path):
    file = tmp_path / "implications.txt"
    file.write_text("# from the site\nkitten -> cat\ncat -> animal\n\nlong_hair -> hair\n")
    assert read_implications(file)["kitten"] == {"cat", "animal"}
    fields = {"tags": "kitten animal long_hair tree"}
    assert caption(fields, implications=str(file)) == "kitten, long hair, tree"
    added = caption(fields, implications=str(file), implied="add")
    assert added == "kitten, animal, long hair, tree, cat, hair"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a -> b\nc d\n", r':2: "c d": write an implication as "a -> b"'),
        ("a -> b\nb -> a\n", ":2: a implies b already"),
    ],
)
def test_bad_implications_are_named_by_line(tmp_path, text, message):
    (tmp_path / "i.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_implications(tmp_path / "i.txt")


def test_tags_as_prose():
    assert sentence(read_tags(DANBOORU, "text", "a").by_category) == (
        "one girl, hatsune miku from vocaloid, with long hair and ^_^, drawn by wlop"
    )
    assert sentence({"general": ["2girls", "1boy", "blue_sky", "tree", "smile"]}) == (
        "two girls and one boy, with blue sky, tree and smile"
    )
    assert sentence({"general": ["solo", "still_life"]}) == "still life"
    assert sentence({"general": ["6+girls", "boyish"]}) == "many girls, with boyish"


@pytest.mark.parametrize(
    "settings",
    [
        {"categories": ()},
        {"categories": ("general", "general")},
        {"quality": {"good": 0.5}},
        {"categories": ("quality",)},
        {"categories": ("quality",), "quality": {"good": 2.0}},
        {"dropout": 1.0},
        {"keep_first": -1},
        {"implications": "nowhere.txt"},
    ],
)
def test_contradictory_settings_are_refused(settings):
    with pytest.raises(ValueError):
        TagSettings(**settings)


TAGGER = """
def tagger(images):
    "Bright images show the sky."
    return [{"blue_sky": float(image.mean()), "tree": 0.4} for image in images]

def short(images):
    return []
"""


@pytest.fixture
def tagger(tmp_path):
    (tmp_path / "my_tagger.py").write_text(TAGGER)
    return f"{tmp_path}/my_tagger.py"


def prompt(*tags):
    return Prompt("unread", {"tags": list(tags)})


def test_tag_recall_is_the_share_of_the_prompts_tags_in_the_image(tagger):
    images = torch.stack([torch.full((3, 4, 4), level) for level in (0.0, 0.5, 1.0)])
    reward = TagRecall(f"{tagger}:tagger")
    assert reward(images, [prompt("blue sky", "tree")] * 3).tolist() == [0.5, 1.0, 1.0]
    assert reward(images, [Prompt("Blue_Sky, dog, cat, tree")] * 3).tolist() == [0.25, 0.5, 0.5]
    soft = TagRecall(f"{tagger}:tagger", soft=True, weights={"blue sky": 3.0})
    assert soft(images, [prompt("blue_sky", "tree")] * 3).tolist() == pytest.approx([0.1, 0.475, 0.85])


def test_tag_recall_refuses_what_it_cannot_score(tagger):
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="asks for no tag that counts"):
        TagRecall(f"{tagger}:tagger", weights={"tree": 0.0})(images, [prompt("tree")])
    with pytest.raises(ValueError, match="returned 0 tables for 1 images"):
        TagRecall(f"{tagger}:short")(images, [prompt("tree")])


def test_tag_recall_in_a_recipe_imports_its_tagger_before_a_run(tagger):
    made, plain = build(Reward, {"kind": "tag-recall", "tagger": f"{tagger}:tagger"}, "rewards.tags")
    assert made == TagRecall(f"{tagger}:tagger")
    assert plain["threshold"] == 0.35
    for name in (f"{tagger}:nothing", f"{Path(tagger).parent}/none.py:f", "plain", f"{tagger}:__name__"):
        with pytest.raises(ConfigError, match=r"rewards.tags.tagger = "):
            build(Reward, {"kind": "tag-recall", "tagger": name}, "rewards.tags")
