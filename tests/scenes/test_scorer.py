"""The image-text scorer: what its file holds, how well it reads, and what is said of a bad file."""

import json
from pathlib import Path

import pytest
import torch

from grpaint.core import CheckpointError, ConfigError
from grpaint.core.rng import noise
from grpaint.scenes.captions import Caption, parse
from grpaint.scenes.contrast import (
    ambiguous_pairs,
    contrastive_loss,
    draw_pairs,
    may_show,
    one_word_wrong,
    otherwise_wrong,
    retrieval,
)
from grpaint.scenes.render import render
from grpaint.scenes.scorer import SHIPPED, Scorer, load_scorer, shipped_scorer
from grpaint.scenes.world import SceneData
from grpaint.storage.files import read_weights, write_weights


@pytest.fixture(scope="module")
def whole():
    """Tensors and header of the shipped file."""
    return read_weights(SHIPPED)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_shipped_scorer_is_small_and_half_precision(whole) -> None:
    tensors, header = whole
    assert SHIPPED.stat().st_size <= 4_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert header["command"].startswith("python -m grpaint.scenes.contrast")
    assert {"text", "image", "word"} <= json.loads(header["retrieval"]).keys()
    assert header["made"].startswith("2026-")


def test_it_is_opened_once_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    assert shipped_scorer() is shipped_scorer()
    load_scorer(SHIPPED)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("fault", ["missing", "cut", "pointer", "other", "lacking"])
def test_a_bad_file_is_refused_with_its_reason(fault: str, tmp_path: Path, whole) -> None:
    file, (tensors, header) = tmp_path / "scorer.safetensors", whole
    match fault:
        case "cut":
            file.write_bytes(SHIPPED.read_bytes()[:-100])
        case "pointer":
            file.write_text("version https://git-lfs.github.com/spec/v1\n")
        case "other":
            write_weights(file, tensors, header | {"model": "scenes"})
        case "lacking":
            write_weights(file, {name: t for name, t in tensors.items() if name != "log_scale"}, header)
    messages = {"missing": "no weights there", "cut": "cut short", "pointer": "git-lfs", "other": 'model is "scenes"'}
    with pytest.raises(CheckpointError, match=messages.get(fault, "1 tensors missing")):
        load_scorer(file)


# -- how well it reads ------------------------------------------------------------------------------------------------


def test_it_tells_held_out_captions_apart() -> None:
    """The file's header has the figures of 4,096 scenes; these are 320 others."""
    scores = retrieval(shipped_scorer(), 320, seed=7)
    assert scores["text"] > 0.95
    assert scores["image"] > 0.95
    assert min(share for name, share in scores.items() if name.startswith("word")) > 0.9


def test_it_reads_through_the_grain_of_a_model_in_training() -> None:
    held_out = SceneData().held_out_images(200, seed=3)
    images, prompts = held_out.images(), held_out.prompts
    grainy = images + 0.05 * noise((0,), range(200), images.shape[1:])
    scorer, texts = shipped_scorer(), [prompt.text for prompt in prompts]
    wrong = [str(one_word_wrong(prompt.metadata["caption"])[0]) for prompt in prompts]
    assert (scorer.score(grainy, texts) > scorer.score(grainy, wrong)).float().mean() > 0.9


def test_a_score_is_the_cosine_of_unit_features() -> None:
    scorer, texts = shipped_scorer(), ["a red circle", "a blue cross", "two green squares"]
    images = render([parse(text) for text in texts], (0,))
    seen, text_states = scorer.image_features(images), scorer.text_features(texts)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text_states.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(scorer.score(images, texts), (seen @ text_states.T).diagonal())
    assert (seen @ text_states.T).argmax(1).tolist() == [0, 1, 2]


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="circel"):
        shipped_scorer().text_features(["a red circel"])


def test_a_distance_is_the_mean_over_layers_of_squared_differences_of_unit_features() -> None:
    scorer = shipped_scorer()
    one, other = render([parse("a red circle")] * 2, (0,)), render([parse("a blue cross")] * 2, (1,))
    expected = torch.zeros(2)
    for a, b in zip(scorer.image.maps(one), scorer.image.maps(other), strict=True):
        unit_a, unit_b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (a, b))
        expected += (unit_a - unit_b).square().sum(1).flatten(1).mean(1) / 5
    torch.testing.assert_close(scorer.distance(one, other), expected)
    torch.testing.assert_close(scorer.distance(one, one), torch.zeros(2))


def test_a_distance_grows_with_what_is_changed() -> None:
    scorer = shipped_scorer()
    scene = render([parse("a red circle above a blue square")] * 64, (0,))
    far = scorer.distance(scene, render([parse("a red circle above a blue square")] * 64, (1,)))
    grain = noise((0,), range(64), scene.shape[1:])
    little, more = (scorer.distance(scene, scene + sd * grain) for sd in (0.02, 0.05))
    assert (little < more).all()
    assert little.mean() < far.mean()


# -- wrong captions ---------------------------------------------------------------------------------------------------


def test_one_word_wrong_changes_one_word_and_stays_in_kind() -> None:
    caption = parse("a small red circle left of a large blue square")
    other = one_word_wrong(caption)
    assert {c.kind for c in other} == {"mixed"}
    # 7 colours and 3 shapes a side, 1 size a side, 3 relations
    assert len(set(map(str, other))) == len(other) == 2 * (7 + 3 + 1) + 3
    assert {str(c) for c in one_word_wrong(parse("two red circles"))} >= {"three red circles", "two red squares"}


def test_other_wrong_captions_swap_or_leave_out_a_side() -> None:
    assert {str(c) for c in otherwise_wrong(parse("a red circle left of a blue square"))} == {
        "a blue square left of a red circle",
        "a red circle",
        "a blue square",
        "a blue circle left of a red square",
    }
    assert otherwise_wrong(parse("a red circle")) == []


@pytest.mark.parametrize(
    ("one", "other", "may"),
    [
        ("a red circle", "a red circle", True),
        ("a small red circle", "a red circle", True),
        ("a small red circle", "a large red circle", False),
        ("a red circle", "a red circle and a blue square", False),
        ("a red circle and a blue square", "a blue square and a red circle", True),
        ("a red circle and a blue square", "a blue square above a red circle", True),
        ("a red circle below a blue square", "a blue square above a red circle", True),
        ("a red circle below a blue square", "a blue square left of a red circle", False),
        ("two red circles", "three red circles", False),
    ],
)
def test_ambiguous_pairs_may_be_true_of_the_same_image(one: str, other: str, may: bool) -> None:
    captions = [parse(one), parse(other)]
    assert may_show(*captions) == may_show(*captions[::-1]) == may
    assert ambiguous_pairs(captions).tolist() == [[False, may], [may, False]]


def test_a_batch_shows_nothing_held_out_and_its_pairs_contradict() -> None:
    captions, wrong = draw_pairs(96, seed=0, iteration=0)
    every: list[Caption] = [*captions, *(other for row in wrong for other in row)]
    assert not any(caption.held_out for caption in every)
    assert not any(may_show(a, b) for a, b in zip(captions[::2], captions[1::2], strict=True))
    assert not any(may_show(a, b) for a, row in zip(captions, wrong, strict=True) for b in row)
    assert draw_pairs(96, seed=0, iteration=0) == (captions, wrong)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_infonce_in_both_directions() -> None:
    captions, wrong = draw_pairs(6, seed=1, iteration=0)
    captions[5] = captions[0]  # may be true of the same image: counts neither way
    images, scorer = render(captions, (0,)), shipped_scorer()
    with torch.autocast("cpu", torch.bfloat16):
        seen = scorer.image_features(images).float()
    text_states = scorer.text_features([str(c) for c in captions])
    scale, total = scorer.log_scale.exp(), 0.0
    for i in range(6):
        cosine = scale * seen @ text_states.T
        rivals = [j for j in range(6) if {i, j} != {0, 5}]
        own = scale * seen[i] @ scorer.text_features([str(c) for c in wrong[i]]).T
        total += torch.cat([cosine[i, rivals], own]).logsumexp(0) + cosine[rivals, i].logsumexp(0) - 2 * cosine[i, i]
    torch.testing.assert_close(contrastive_loss(scorer, images, captions, wrong), total / 12, rtol=1e-4, atol=1e-5)


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    scorer = Scorer()
    captions, wrong = draw_pairs(16, seed=2, iteration=0)
    images, optimizer, losses = render(captions, (0,)), torch.optim.AdamW(scorer.parameters(), 1e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = contrastive_loss(scorer, images, captions, wrong)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
