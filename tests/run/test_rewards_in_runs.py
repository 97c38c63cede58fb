"""Rewards as a run meets them: self-tests before it, constants and floors within it, metadata, and `reward try`."""

import json
from pathlib import Path

import pytest
from PIL import Image

import tiny_runs
from grpaint.core.errors import ConfigError
from grpaint.judge import judging_rewards
from grpaint.parallel.world import World
from grpaint.recipe.config import open_recipe, resolve
from grpaint.recipe.pieces import stateful
from grpaint.recipe.stand_ins import StandIn, stand_ins, with_stand_ins
from grpaint.run.shares import check_shares
from tiny_runs import TINY, command, lines, status
from tiny_scorers import clip_folder

pytestmark = pytest.mark.usefixtures("small_network")

REWARDS = """
import torch
from grpaint.core import Prompt
from grpaint.core.reward import Pair, RewardBase

class Backwards(RewardBase):
    \"\"\"Likes the dark, and says that it likes the light.\"\"\"

    def __call__(self, images, prompts):
        return -images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)

    def pair(self):
        return Pair(torch.ones(3, 8, 8), torch.zeros(3, 8, 8), Prompt("light"), -1, 1)

def rows(images, prompts):
    return images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)

def less(images, prompts):
    return -rows(images, prompts)

def kinds(images, texts, metadata):
    assert all(isinstance(text, str) for text in texts)
    return [float(len(about["kind"])) + 0.1 * (row % 4) for row, about in enumerate(metadata)]

def red(images, prompts, least=0.1):
    return images[:, 0].mean((1, 2)) > least
"""


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("rewards.py").write_text(REWARDS)
        yield


def run(*sets, name="it"):
    return command("train", "flow-grpo-fast", "--name", name, sets=[*TINY, *sets])


def test_a_self_test_that_fails_ends_a_run_before_it_begins_and_may_be_left_out():
    end = run('rewards={dark={kind="rewards.py:Backwards"}}')
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert "before the first iteration: reward dark" in end.err
    assert "rewards.dark.self_test = false" in end.err
    assert not Path("runs/it").exists()
    assert run('rewards={dark={kind="rewards.py:Backwards",self_test=false}}').code == 0


def test_a_constant_reward_stops_a_run_that_can_be_resumed():
    Path("flat.py").write_text("def score(images, prompts):\n    return [0.25] * len(images)\n")
    sets = ['rewards={flat={kind="flat.py:score"}}', "train.constant=3", "checkpoint.every=1"]
    end = run(*sets)
    assert end.code == 1
    assert end.err.count("\n") == 1
    assert "reward flat gave every image 0.25 in 3 iterations in a row" in end.err
    assert [line["iteration"] for line in lines(Path("runs/it/metrics.jsonl"))] == [1, 2]
    assert status(Path("runs/it"))["status"] == "failed"
    Path("flat.py").write_text("def score(images, prompts):\n    return [0.1 * (i % 4) for i in range(len(images))]\n")
    assert command("train", "--name", "it", "--resume").code == 0
    assert len(lines(Path("runs/it/metrics.jsonl"))) == 4


def test_a_floor_is_logged_and_resumed():
    floor = '{kind="rewards.py:less",weight=0,floor={rate=2.0,keep=0.0}}'
    sets = [f'rewards={{more={{kind="rewards.py:rows"}},less={floor}}}']
    assert list(stateful(open_recipe("flow-grpo-fast", "train", [*TINY, *sets])[0].rewards)) == ["less.floor"]
    assert run(*sets, name="whole").code == 0
    assert run(*sets, "train.iterations=2").code == 0
    state = json.loads(Path("runs/it/checkpoints/000002/state.json").read_text())
    assert state["pieces"]["rewards.less.floor"]["base"] < 0
    assert command("train", "--name", "it", "--resume", sets=["train.iterations=4"]).code == 0
    whole, resumed = (tiny_runs.timeless(Path(f"runs/{name}/metrics.jsonl")) for name in ("whole", "it"))
    assert whole == resumed
    for line in whole:
        assert line["advantage/share/more"] + line["advantage/share/less"] == pytest.approx(1)
    assert [line["reward/less/multiplier"] for line in whole][:2] == [0.0, 0.0]  # the base, and its measure


def test_the_floors_multiplier_is_not_used_in_evaluation():
    floor = '{kind="rewards.py:less",weight=0.5,floor={}}'
    sets = [*TINY, f'rewards={{more={{kind="rewards.py:rows"}},less={floor}}}']
    recipe = open_recipe("flow-grpo-fast", "train", sets)[0]
    held = recipe.rewards["less"].floor
    held.load_state_dict(held.state_dict() | {"multiplier": 2.0})
    assert recipe.reward_set().weights == {"more": 1.0, "less": 2.5}
    assert judging_rewards(recipe).weights == {"more": 1.0, "less": 0.5}


def test_a_stand_in_has_what_is_decided_from_the_reward_that_it_stands_for():
    kinds = ["scenes-checker", "scenes-cleanliness"]
    rewards = ",".join(f'r{n}={{kind="{kind}",weight=0.5,floor={{}},place="node"}}' for n, kind in enumerate(kinds))
    pairwise = 'judge={kind="vlm-judge",url="http://127.0.0.1:1",model="m",measure="pairwise",place="node"}'
    recipe, settings = open_recipe(
        "flow-grpo-fast",
        "train",
        [*TINY, f'rewards={{{rewards},{pairwise},own={{kind="rewards.py:rows",place="each"}}}}'],
    )
    tables = json.loads(json.dumps(stand_ins(recipe)))  # as they reach another process
    assert list(tables) == ["r0", "r1", "judge"]
    other, _ = resolve(with_stand_ins(settings, tables), "train")
    for name, item in other.rewards.items():
        its = recipe.rewards[name]
        assert isinstance(item.reward, StandIn) == (name != "own")
        assert (item.weight, item.place, item.floor) == (its.weight, its.place, its.floor)
        assert item.self_test == (name == "own")
        for attribute in ("needs_reference", "needs_group", "best", "image_size"):
            assert (getattr(item.reward, attribute, None) or None) == (getattr(its.reward, attribute, None) or None)
    assert recipe.rewards["judge"].reward.needs_group
    assert recipe.rewards["r0"].reward.best
    assert other.reward_set().sharing.names == {"r0", "r1", "judge"}


def test_a_reward_with_a_state_of_its_own_is_not_shared():
    Path("rewards.py").write_text(
        f"{REWARDS}\nclass Counter(Backwards):\n    divisible = True\n    def state_dict(self):\n        return {{}}\n"
        "    def load_state_dict(self, state):\n        pass\n"
    )
    world = World()
    world.size = 2
    for place, refused in (("each", False), ("node", True)):
        reward = f'{{kind="rewards.py:Counter",place="{place}"}}'
        recipe, _ = open_recipe("flow-grpo-fast", "train", [*TINY, f"rewards={{counter={reward}}}"])
        check_shares(recipe, World())
        if refused:
            with pytest.raises(
                ConfigError, match=r'^rewards\.counter\.place = "node": it keeps state .*; use place = "each"\.$'
            ):
                check_shares(recipe, world)
        else:
            check_shares(recipe, world)


def test_a_function_of_three_gets_texts_and_metadata_and_a_third_setting_is_no_metadata():
    sets = ['rewards={kinds={kind="rewards.py:kinds"},red={kind="rewards.py:red"}}', "train.iterations=1"]
    assert run(*sets).code == 0
    recipe, plain = open_recipe("flow-grpo-fast", "train", [*TINY, *sets])
    assert plain["rewards"]["kinds"] == {"kind": "rewards.py:kinds", "weight": 1.0, "self_test": True}
    prompts = recipe.data.prompts(3, 0, 0)
    expected = [len(prompts[row // 4].metadata["kind"]) + 0.1 * (row % 4) for row in range(12)]
    assert lines(Path("runs/it/metrics.jsonl"))[0]["reward/kinds"] == pytest.approx(sum(expected) / 12)


def test_truncated_captions_are_in_the_metrics(tmp_path):
    clip = clip_folder(tmp_path / "clip")  # a token a letter, 18 of them
    reward = f'{{kind="clip-score",weights="{clip}",tokenizer="{clip}",self_test=false}}'
    assert run(f"rewards={{clip={reward}}}", "train.iterations=1", "data.kinds=['single']").code == 0
    (line,) = lines(Path("runs/it/metrics.jsonl"))
    texts = [
        prompt.text
        for prompt in open_recipe("flow-grpo-fast", "train", [*TINY, "data.kinds=['single']"])[0].data.prompts(3, 0, 0)
    ]
    long = sum(len(text.replace(" ", "")) > 18 for text in texts)
    assert line["reward/clip/truncated"] == pytest.approx(long / 3)


def _folder(count=5, side=24):
    Path("pictures").mkdir()
    for number in range(count):
        grey = Image.new("RGB", (side, side + (number == 3)), (50 * number, 0, 0))
        grey.save(f"pictures/{number}.png")


def test_reward_try_scores_a_folder():
    _folder()
    end = command("reward", "try", "rewards.py:red", "--images", "pictures", "--json")
    assert end.code == 0, end.err
    report = json.loads(end.out)
    assert report["scores"] == {"0.png": 0, "1.png": 1, "2.png": 1, "3.png": 1, "4.png": 1}
    assert (report["images"], report["mean"], report["worst"]) == (5, 0.8, "0.png")
    assert report["self_test"] is None
    end = command("reward", "try", "jpeg", "--images", "pictures", sets=["want=large"])
    assert end.code == 0
    for word in ("self-test", "better", "mean", "std", "best", "worst"):
        assert word in end.out
    assert "alike" not in end.out


def test_reward_try_reads_captions_beside_pictures_and_from_files():
    from grpaint.report.figures import save_picture, to_picture
    from grpaint.scenes.world import SceneData

    batch = SceneData(caption_dropout=0.0).batch(3, 0, 0)
    images, prompts = batch.images(), batch.prompts
    Path("drawn").mkdir()
    for number, image in enumerate(images):
        save_picture(to_picture(image, 32), Path(f"drawn/{number}.png"))
    end = command("reward", "try", "scenes-checker", "--images", "drawn")
    assert end.code == 2
    assert "0.png: has no caption" in end.err
    texts = [prompt.text for prompt in prompts]
    Path("captions.txt").write_text("".join(f"{n}.png\t{text}\n" for n, text in enumerate(texts)))
    Path("captions.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n}.png", "text": text, "more": 1}) + "\n" for n, text in enumerate(texts))
    )
    for file in ("captions.txt", "captions.jsonl"):
        end = command("reward", "try", "scenes-checker", "--images", "drawn", "--prompts", file, "--json")
        assert json.loads(end.out)["mean"] == 1.0
    for number, text in enumerate(texts):
        Path(f"drawn/{number}.json").write_text(json.dumps({"sentence": text, "more": 1}))
    assert json.loads(command("reward", "try", "scenes-checker", "--images", "drawn", "--json").out)["mean"] == 1.0
    Path("drawn/0.json").unlink()  # as in training, scorers of scenes read a sentence before the caption
    Path("drawn/0.txt").write_text("a green cross\n" if texts[0] != "a green cross" else "a red cross\n")
    for number in (1, 2):
        Path(f"drawn/{number}.txt").write_text(texts[number])
    report = json.loads(command("reward", "try", "scenes-checker", "--images", "drawn", "--json").out)
    assert report["worst"] == "0.png"
    assert report["scores"]["0.png"] < 1 == report["scores"]["1.png"]
    end = command("reward", "try", "scenes-distance", "--images", "drawn", "--references", "drawn", "--json")
    assert json.loads(end.out)["mean"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jpge", "--images", "pictures"], 'Did you mean "jpeg"'),
        (["jpeg", "--images", "nowhere"], "no such file or folder"),
        (["jpeg", "--images", "empty"], "no pictures"),
        (["jpeg", "--images", "broken"], "0.png: not a picture"),
        (["jpeg", "--images", "pictures", "--prompts", "rewards.py"], "line 2 is not NAME<tab>CAPTION"),
        (["scenes-distance", "--images", "pictures"], "--references"),
        (["lpips", "--images", "pictures"], "reward.weights"),
    ],
)
def test_reward_try_refuses_in_one_line(words, message):
    _folder(2)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/0.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    end = command("reward", "try", *words)
    assert end.code == 2
    assert message in end.err
    assert end.err.count("\n") == 1


def test_a_reward_on_hub_weights_does_not_open_them_to_be_shown():
    end = command("show", "flow-grpo-fast", "--json", sets=['rewards={clip={kind="clip-score"}}'])
    assert end.code == 0
    assert json.loads(end.out)["settings"]["rewards"]["clip"]["weights"] == "openai/clip-vit-large-patch14"
    end = run('rewards={clip={kind="clip-score"}}')  # offline
    assert end.code == 2
    assert 'rewards.clip.weights = "openai/clip-vit-large-patch14": not on this machine' in end.err
