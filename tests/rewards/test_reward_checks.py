"""Self-tests, rewards that say the same of everything, and what is refused before anything is opened."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grpaint.core import ConfigError, MissingExtra, Prompt, RewardError
from grpaint.core.reward import Pair, RewardBase
from grpaint.learn import RewardSet, RewardTable
from grpaint.learn.reward_checks import ConstantWatch, self_test
from grpaint.recipe.catalog import CATALOG, find_piece
from grpaint.recipe.pieces import WeightedReward
from grpaint.rewards.clip import ClipScore
from grpaint.rewards.jpeg import Jpeg
from grpaint.rewards.lpips import LpipsToReference
from grpaint.rewards.scenes import SceneChecker, SceneCleanliness, SceneDistance, SceneScorer
from tiny_scorers import clip_folder, lpips_tensors

IMAGES, PROMPTS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), [Prompt("a"), Prompt("b")]
WITHOUT_WEIGHTS = [
    SceneChecker(),
    SceneChecker(1, 0),
    SceneScorer(),
    SceneScorer(enough=0.9),
    SceneDistance(),
    SceneCleanliness(),
    SceneCleanliness(enough=0.03),
    Jpeg(),
    Jpeg("large"),
]


@pytest.mark.parametrize("reward", WITHOUT_WEIGHTS, ids=str)
def test_a_reward_without_weights_passes_its_own_test(reward: RewardBase) -> None:
    outcome = self_test("it", reward, IMAGES, PROMPTS)
    assert outcome
    better, worse = outcome[1].tolist()
    assert better > worse


def test_lpips_passes_whatever_its_weights(tmp_path: Path) -> None:
    for name, tensors in zip(("alexnet-owt-7be5be79.pth", "alex.pth"), lpips_tensors(), strict=True):
        torch.save(tensors, tmp_path / name)
    outcome = self_test("like", LpipsToReference(weights=str(tmp_path), heads=str(tmp_path)), IMAGES, PROMPTS)
    assert outcome
    assert outcome[1][0] == 0
    assert outcome[1][1] < 0


FOREIGN = {
    "geneval",
    "ocr",
    "remote",
    "tag-recall",
    "vlm-head",
    "vlm-judge",
    "vlm-score",
    "votes",
    "worker",
}  # others answer


@pytest.mark.parametrize("kind", sorted(CATALOG["rewards"].keys() - FOREIGN))
def test_every_reward_of_ours_has_a_pair(kind: str) -> None:
    pair = find_piece("rewards", kind, "test")().pair()
    assert pair.better.shape == pair.worse.shape
    assert not torch.equal(pair.better, pair.worse)
    assert pair.low < pair.high
    for picture in (pair.better, pair.worse):
        assert picture.shape[0] == 3


@dataclass(frozen=True)
class Says(RewardBase):
    """Two scores for its pair."""

    better: float
    worse: float

    def __call__(self, images: Tensor, prompts: object, /) -> Tensor:
        return torch.tensor([self.better, self.worse])

    def pair(self) -> Pair:
        return Pair(IMAGES[0], IMAGES[1], Prompt("a cat"), 0, 1)


@pytest.mark.parametrize(
    ("better", "worse", "message"),
    [
        (0.3, 0.4, r"better image scored 0\.3 and the worse 0\.4, which is not lower"),
        (0.3, 0.3, "which is not lower"),
        (0.3, -0.1, r"outside 0\.\.1"),
        (7.0, 0.2, r"outside 0\.\.1"),
        (float("nan"), 0.2, "returned nan"),
    ],
)
def test_a_self_test_that_fails_says_what_it_saw(better: float, worse: float, message: str) -> None:
    with pytest.raises(RewardError, match=message) as refusal:
        self_test("cat", Says(better, worse), IMAGES, PROMPTS)
    text = str(refusal.value)
    assert "reward cat" in text
    assert "a cat" in text
    if "nan" not in message:
        assert "rewards.cat.self_test = false" in text


def test_a_self_test_scores_two_images_and_restores_the_state() -> None:
    class Counts:
        seen = 0

        def __call__(self, images: Tensor, prompts: object) -> list[float]:
            self.seen += 1
            return [0.0] * len(images)

        def state_dict(self) -> dict[str, int]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.seen = state["seen"]

    counts = Counts()
    assert self_test("mine", counts, IMAGES, PROMPTS) is None
    assert counts.seen == 0
    with pytest.raises(RewardError, match=r"shape \(1,\) for 2 images"):
        self_test("mine", lambda images, prompts: [0.0], IMAGES, PROMPTS)

    class Broken(Says):
        def pair(self) -> Pair:
            raise KeyError("a file of mine")

    with pytest.raises(RewardError, match=r"reward mine raised KeyError: 'a file of mine' \(before its"):
        self_test("mine", Broken(1, 0), IMAGES, PROMPTS)


def watched(limit: int, *columns: list[float], reward: object = None, applies: list[bool] | None = None) -> None:
    watch = ConstantWatch(limit)
    for column in columns:
        where = {"it": torch.tensor(applies)} if applies else {}
        watch.observe(RewardTable({"it": torch.tensor(column)}, {}, where), {"it": reward}, PROMPTS)  # type: ignore[dict-item]


def test_one_score_for_everything_too_often_in_a_row() -> None:
    flat, other = [0.0, 0.0], [0.0, 1.0]
    watched(3, flat, flat, other, flat, flat)
    watched(0, *[flat] * 50)
    watched(1, [0.5])  # one image cannot tell
    watched(2, [1.0, 1.0], [2.0, 3.0], [1.0, 1.0])
    with pytest.raises(
        RewardError, match=r'reward it gave every image 0 in 3 iterations in a row .*"a", "b".*--resume'
    ):
        watched(3, flat, other, flat, flat, flat)
    with pytest.raises(RewardError, match="every image 4"):
        watched(2, [4.0, 4.0, 1.0], [4.0, 4.0, 2.0], applies=[True, True, False])


def test_a_reward_may_stay_at_its_best_score() -> None:
    solved = [1.0, 1.0]
    watched(2, *[solved] * 5, reward=SceneChecker())
    watched(2, *[[-0.005, -0.005]] * 5, reward=SceneCleanliness(enough=0.005))
    with pytest.raises(RewardError, match="every image 0"):
        watched(2, *[[0.0, 0.0]] * 5, reward=SceneChecker())


def test_truncated_captions_are_reported_as_a_share(tmp_path: Path) -> None:
    clip = str(clip_folder(tmp_path))
    rewards = RewardSet({"clip": ClipScore(weights=clip, tokenizer=clip), "size": Jpeg(), "f": Says(1, 0)}, {})
    prompts = [Prompt("a b c"), Prompt("a " * 40), Prompt("a b"), Prompt("b")]
    assert rewards.truncated(prompts) == {"clip": 0.25}


def test_a_missing_file_is_one_line_with_the_way_to_get_it(tmp_path: Path) -> None:
    cases = {
        "clip-score": ("weights", "openai/clip-vit-large-patch14"),
        "hps": ("weights", "huggingface.co/xswu/HPSv2"),
        "aesthetic": ("weights", "trl-lib/ddpo-aesthetic-predictor"),
        "image-reward": ("weights", "THUDM/ImageReward"),
        "pick-score": ("weights", "yuvalkirstain/PickScore_v1"),
        "lpips": ("weights", "download.pytorch.org"),
    }
    for kind, (setting, word) in cases.items():
        reward = find_piece("rewards", kind, "test")(**{setting: str(tmp_path)})
        with pytest.raises(ConfigError, match=r"no \S+ there") as refusal:
            WeightedReward(reward).check("rewards.mine")
        text = str(refusal.value)
        assert text.startswith(f'rewards.mine.{setting} = "{tmp_path}"')
        assert word in text
        assert "\n" not in text
        assert ("grpaint fetch" in text) == (kind != "lpips")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r'rewards\.mine\.device = "cuda"'):
            WeightedReward(ClipScore(device="cuda")).check("rewards.mine")


def test_a_missing_transformers_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    with pytest.raises(MissingExtra, match=r"pip install 'grpaint\[rewards\]'"):
        WeightedReward(ClipScore()).check("rewards.mine")


def test_jpeg_sizes_are_those_of_files() -> None:
    import io

    import numpy as np
    from PIL import Image

    for image, score in zip(IMAGES, Jpeg("large")(IMAGES, PROMPTS).tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy().astype(np.uint8)).save(
            file, "JPEG", quality=95
        )
        assert score == pytest.approx(len(file.getvalue()) / 1000)
    torch.testing.assert_close(Jpeg()(IMAGES, PROMPTS), -Jpeg("large")(IMAGES, PROMPTS))
    with pytest.raises(ValueError, match="quality"):
        Jpeg(quality=0)
