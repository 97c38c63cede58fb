"""Booru tags: read, arranged, refused; as prose, and as a reward."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt, Reward
from grpaint.images.booru import ImageTags, read_tags
from grpaint.images.tags import TagSettings, read_implications, sentence, underscores_to_spaces
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


TEXTS = {
    "1girl, solo, long hair": ["1girl", "solo", "long hair"],
    "1girl,solo,long_hair": ["1girl", "solo", "long hair"],
    "1girl\nsolo\r\nlong hair\n": ["1girl", "solo", "long hair"],
    "1girl, solo,\nlong hair": ["1girl", "solo", "long hair"],
    "1girl; solo; long hair": ["1girl", "solo", "long hair"],
    "1girl ,_, long_hair": ["1girl", ",_,", "long hair"],
    "1girl, ,_,, long hair": ["1girl", ",_,", "long hair"],
    "1girl ;_; long_hair": ["1girl", ";_;", "long hair"],
    "1girl solo long_hair": ["1girl", "solo", "long hair"],
    "1girl\uff0csolo\u3001long hair": ["1girl", "solo", "long hair"],
    "1girl\tsolo\tlong hair": ["1girl", "solo", "long hair"],
    "1girl|solo | long hair": ["1girl", "solo", "long hair"],
    "['1girl', 'solo', 'long hair']": ["1girl", "solo", "long hair"],
    '["1girl", "solo", "long_hair"]': ["1girl", "solo", "long hair"],
    "1girl |_| long_hair": ["1girl", "|_|", "long hair"],
    "1girl, solo ||| long hair": ["1girl", "solo", "long hair"],
    "1girl|||solo|||long_hair": ["1girl", "solo", "long hair"],
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("column", ["tags", "tag_string", "tags_general", "tag_string_general", "text"])
def test_tags_are_what_lies_between_the_separators_of_a_text(column, text):
    tags = TagSettings()
    arranged = tags.arrange(read_tags({column: text}, "text", "a.png"), ())
    assert arranged["general"] == TEXTS[text]
    shuffled = {tags.caption(arranged, None)} | {
        caption({column: text}, random.Random(n), shuffle="all") for n in range(40)
    }
    assert all(sorted(words.split(", ")) == sorted(TEXTS[text]) for words in shuffled)
    assert len(shuffled) == 6
    assert caption({column: text}, random.Random(0), dropout=0.999) == TEXTS[text][0]


def test_a_caption_in_prose_is_one_tag_and_items_of_lists_are_cut_at_commas():
    assert read_tags({"text": "a cat on a mat"}, "text", "a").by_category == {"general": ("a cat on a mat",)}
    assert caption({"tags": ["1girl, solo", "long hair"]}) == "1girl, solo, long hair"
    assert caption({"tags": {"1girl": 0.98, "long_hair": 0.7}}) == "1girl, long hair"
    assert caption({"tags": None, "tag_string": "null", "text": "a, b"}) == "a, b"


def test_categories_of_other_sites_count_as_the_nearest_of_danbooru():
    e621 = {"tags": {"general": ["long_ears"], "species": ["fox"], "artist": ["wlop"], "lore": [], "meta": []}}
    assert caption(e621) == "wlop, long ears, fox"
    assert caption({"tags_metadata": "highres", "tags_circle": "wlop", "tags_general": "a b"}) == "wlop, a, b, highres"
    assert (
        caption({"tags_genre": ["action"], "tags_pose": ["kneeling"], "tags_general": ["a"]}) == "a, action, kneeling"
    )
    assert caption({"tags": {"general": ["a"], "lore": ["twins"], "contributor": ["mo"]}}) == "a, twins, mo"


@pytest.mark.parametrize(
    ("fields", "rating"),
    [
        ({"rating": "s", "tag_string": "a"}, "sensitive"),
        ({"rating": "s", "category": "danbooru"}, "sensitive"),
        ({"rating": "s", "category": "yandere"}, "general"),
        ({"rating": "s", "category": "e621", "tag_string": "a"}, "general"),
        ({"rating": "S", "category": "Gelbooru"}, "general"),
        ({"rating": "s", "category": "rule34us"}, "general"),
        ({"rating": "s", "category": "booruvar", "tags": "a"}, "sensitive"),
        ({"rating": "s"}, "s"),
        ({"rating": "s", "category": "portrait"}, "s"),
        ({"rating": "Safe"}, "general"),
        ({"rating": "rating:questionable"}, "questionable"),
        ({"rating": "E"}, "explicit"),
        ({"rating": " "}, None),
    ],
)
def test_ratings_mean_what_their_site_means_by_them(fields, rating):
    assert read_tags({"tags": "a"} | fields, "text", "a.png").rating == rating


def test_a_rating_that_may_mean_two_things_is_refused_where_it_counts():
    tags = read_tags({"tags": "a", "rating": "s"}, "text", "a.png")
    assert TagSettings().exclusion_reason(tags, "a.png") is None
    for settings in ({"ratings": ("general",)}, {"categories": ("rating", "general")}):
        with pytest.raises(ConfigError, match=r'a.png: rating = "s" is "sensitive" on danbooru and "safe" elsewhere'):
            TagSettings(**settings).exclusion_reason(tags, "a.png")


@pytest.mark.parametrize("rating", ["unrated", "R15+", 5, {"general": 0.9, "sensitive": 0.1}])
def test_a_rating_of_no_site_is_refused_where_it_counts(rating):
    tags = read_tags({"tags": "a b", "rating": rating}, "text", "a.png")
    assert TagSettings().exclusion_reason(tags, "a.png") is None
    for settings in ({"ratings": ("general",)}, {"categories": ("rating", "general")}):
        with pytest.raises(
            ConfigError, match=r'a.png: rating = ".*": no rating. There are: e, explicit, g, general, q'
        ):
            TagSettings(**settings).exclusion_reason(tags, "a.png")


@pytest.mark.parametrize(
    ("score", "number"), [("41", 41), (41, 41), ({"up": 50, "down": -9, "total": 41}, 41), ("N/A", None), ("", None)]
)
def test_scores_are_numbers_however_they_are_written(score, number):
    assert read_tags({"tags": "a", "score": score}, "text", "a.png").score == number


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tag_string_general": 5}, r"a.png: tags must be a text or a list of texts, not 5"),
        ({"tags": ["a", 1]}, r"a.png: tags must be"),
        ({"tags": "a", "score": "many"}, r"a.png: score = 'many': must be a number"),
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
