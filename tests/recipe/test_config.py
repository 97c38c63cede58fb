"""Recipes: what is refused, how --set reads, and that run.toml repeats a run."""

import tomllib
from pathlib import Path

import pytest
import tomli_w

import tiny_runs
from grpaint.core.errors import ConfigError
from grpaint.core.step import Cps, Ddim, FlowSde
from grpaint.recipe.config import open_recipe, override, parse_sets, resolve, stage_of
from tiny_runs import EMBEDDED, command

CONTRACT = [
    "train.iterations",
    "train.prompts",
    "train.group_size",
    "train.learning_rate",
    "train.seed",
    "plan.steps",
    "plan.sampler.kind",
    "plan.sampler.eta",
    "checkpoint.every",
    "checkpoint.keep",
    "evaluate.every",
    "evaluate.prompts",
    "device",
    "precision",
    "threads",
]


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def _refused(end, *words):
    """Exit code 2, one line that says ``words``, and nothing made."""
    assert end.code == 2
    assert end.err.startswith("grpaint: ")
    assert end.err.count("\n") == 1
    assert end.err.endswith("\n")
    assert not end.out
    for word in words:
        assert word in end.err
    assert not Path("runs").exists()


REFUSED = {
    "train.iterationz=3": ["train.iterationz", 'Did you mean "iterations"?'],
    "trian.iterations=3": ["trian", 'Did you mean "train"?'],
    "plan.sampler.etta=1": ["plan.sampler.etta", 'Did you mean "eta"?'],
    "train.iterations=two": ["train.iterations", "whole number"],
    "train.iterations=1.5": ["train.iterations = 1.5", "whole number"],
    "train.iterations=true": ["train.iterations", "whole number"],
    "train.learning_rate=fast": ["train.learning_rate", "a number"],
    "device=3": ["device", "auto, cpu, cuda"],
    "device=gpu": ["device", "auto, cpu, cuda"],
    "model=3": ["model = 3", "table"],
    "data.kinds=two": ["data.kinds", "list"],
    'data.kinds=["too"]': ["data.kinds[0]", 'Did you mean "two"?'],
    "train.iterations=0": ["train.iterations", "at least 1"],
    "train.prompts=0": ["train.prompts", "at least 1"],
    "train.seed=-1": ["train.seed", "at least 0"],
    "train.learning_rate=0": ["train.learning_rate", "positive"],
    "train.learning_rate=nan": ["train.learning_rate", "nan"],
    "train.learning_rate=inf": ["train.learning_rate", "inf"],
    "train.ema=1": ["train.ema", "[0, 1)"],
    "train.optimizer.beta2=1": ["train.optimizer.beta2", "[0, 1)"],
    "train.optimizer.weight_decay=-1": ["train.optimizer.weight_decay"],
    "train.schedule=sine": ["train.schedule", "constant, linear, cosine"],
    "plan.steps=0": ["plan.steps", "at least 1"],
    "plan.sampler.eta=-0.1": ["plan.sampler.eta", "[0, 1]"],
    "checkpoint.every=0": ["checkpoint.every", "at least 1"],
    "checkpoint.keep=0": ["checkpoint.keep", "at least 1"],
    "evaluate.every=0": ["evaluate.every", "at least 1"],
    "evaluate.prompts=0": ["evaluate.prompts", "at least 1"],
    "evaluate.guided=[-1]": ["evaluate.guided"],
    "threads=-1": ["threads", "at least 0"],
    "rewards.checker.weight=nan": ["rewards.checker.weight"],
    "rewards.checker.weight=0": ["rewards", "weight"],
    "rewards={}": ["rewards", "at least one"],
    "plan.sampler.kind=flow-sdee": ["plan.sampler.kind", 'Did you mean "flow-sde"?', "cps, dance-sde, ddim"],
    "plan.sampler.kind=tcd": ["plan.sampler.kind", "third noise level", '"cps"', "gamma 1. There are: annealed"],
    "plan.steps=1": ["plan.steps = 1", "likelihood", "take 2 steps or more", '"awm"'],
    "model.kind=scene": ["model.kind", 'Did you mean "scenes"?'],
    "advantage.kind=groups": ["advantage.kind", 'Did you mean "group"?'],
    "rewards.mine={}": ["rewards.mine.kind is missing", "scenes-checker"],
    "plan.window.high=7": ["plan.window", "8 steps"],
    'plan.window={kind="prefix",size=11}': ["plan.window", "1..8"],
    'plan.window={kind="whole",skip_last=8}': ["plan.window", "0..7"],
    "plan.window.high=6": ["plan.sampler", "step 7", "likelihood"],
    "plan.window.kind=closed": ["plan.window", "likelihood"],
    "plan.sampler.kind=ode": ["plan.sampler", "likelihood"],
    "plan.sampler.eta=0": ["plan.sampler", "likelihood"],
    'plan.sampler={kind="ddim",eta=0}': ["plan.sampler", "likelihood"],
    "train.group_size=1": ["train.group_size = 1", 'advantage = { kind = "batch" }'],
    "train.updates=145": ["train.updates", "144"],
    "stage=sft": ["grpaint sft", 'stage = "train"'],
    "train": ["--set train", "key.sub=value"],
    "=3": ["key.sub=value"],
    "train.iterations.now=3": ["train.iterations.now", "not a table"],
    "rewards.mine.kind=nowhere.py:score": ["rewards.mine.kind", "nowhere.py"],
    "rewards.mine.kind=no_such_module:score": ["rewards.mine.kind", "no_such_module"],
    "rewards.mine.kind=reward.py:scores": ["rewards.mine.kind", "scores"],
    "rewards.mine.kind=reward.py:calls": ["rewards.mine.kind", "function"],
    "plan.start.kind=reference": ["plan.start.kind", "data.references"],
    "rewards.checker.weight=1e300": ["rewards.checker.weight = 1e+300", "fp32", "1e+30"],
    "rewards.checker.weight=inf": ["rewards.checker.weight = inf", "finite"],
    "train.optimizer.eps=1e-320": ["train.optimizer.eps", "fp32"],
    f"train.learning_rate=1{'0' * 300}": ["train.learning_rate", "fp32"],
    "train.seed=9007199254740993": ["train.seed", "2^53"],
    f"train.seed={'9' * 5000}": ["--set train.seed", "digits"],
    f"train.seed=0x{'f' * 5000}": ["--set train.seed", "digits"],
    f"train.seed={'[' * 5000}": ["--set train.seed", "levels"],
    f"train.{'a.' * 5000}a=1": ["--set train.a.a", "parts"],
    f"rewards.{'x' * 300}.kind=jpeg": ["rewards.xxx", "300 characters"],
    'rewards.checker.kind="\\u0000"': ["rewards.checker.kind"],
    "model.start=\udcff": ["model.start", "no character of a text"],
    "train.prompts=100001": ["train.prompts", "at most 100000"],
    "train.group_size=100000": ["train.prompts x group_size", "1000000"],
    "evaluate.prompts=1000000000": ["evaluate.prompts", "at most 100000"],
    "evaluate.steps=1001": ["evaluate.steps", "at most 1000"],
    "threads=100000": ["threads", "at most 1024"],
    "loggers.it={kind='wandb',mode='shout'}": ["loggers.it.mode", "offline"],
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_bad_setting_is_one_line(setting):
    _refused(command("train", "flow-grpo-fast", sets=[setting]), *REFUSED[setting])


@pytest.mark.parametrize("key", ["evaluate.sampler", "plan.outside"])
def test_every_sampler_is_tried_on_the_models_path_before_weights_are_opened(key):
    sets = ["model.parametrisation=epsilon", "plan.sampler.kind=ddim", f"{key}.kind=flow-sde"]
    _refused(command("train", "flow-grpo-fast", sets=sets), key, "flows", "ddim")


def test_images_of_another_size_than_the_built_in_models_are_refused_before_they_are_opened():
    sets = ['data={kind="images",train="nowhere",resolution=64}']
    _refused(command("train", "flow-grpo-fast", sets=sets), "64 x 64", "data.resolution = 32")


def test_infinity_is_a_bound_where_something_is_bounded():
    sets = ["train.max_grad_norm=inf", "advantage.clip=inf", "objective.surrogate.high=inf"]
    _, settings = open_recipe("flow-grpo-fast", "train", sets)
    assert settings["train"]["max_grad_norm"] == settings["advantage"]["clip"] == float("inf")
    assert resolve(tomllib.loads(tomli_w.dumps(settings)), "train")[1] == settings


def test_an_anchor_of_defaults_comes_back_from_run_toml():
    settings = open_recipe("flow-grpo-fast", "train", ["anchor={}"])[1]
    assert "kind" not in settings["anchor"]["loss"]
    settings["anchor"]["loss"]["kind"] = "denoising"  # as earlier versions wrote it
    assert resolve(settings, "train")[1]["anchor"]["loss"] == {
        key: value for key, value in settings["anchor"]["loss"].items() if key != "kind"
    }


@pytest.mark.parametrize("sampler", ["flow-sde", "dance-sde"])
def test_a_flow_sampler_is_refused_on_a_diffusion_path(sampler):
    sets = ["model.parametrisation=epsilon", f"plan.sampler.kind={sampler}"]
    _refused(command("train", "flow-grpo-fast", sets=sets), "plan", "flows", "ddim")
    open_recipe("flow-grpo-fast", "train", ["model.parametrisation=epsilon", "plan.sampler.kind=ddim"])


def test_a_group_of_one_is_for_advantages_that_look_beyond_it():
    for kind in ("batch", "history"):
        open_recipe("flow-grpo-fast", "train", ["train.group_size=1", f"advantage.kind={kind}"])
    for kind in ("group", "per-reward"):
        _refused(
            command("train", "flow-grpo-fast", sets=["train.group_size=1", f"advantage.kind={kind}"]),
            "train.group_size",
        )


def test_every_possible_window_must_have_a_likelihood():
    for seed in range(8):
        _refused(command("train", "flow-grpo-fast", sets=["plan.window.high=6", f"train.seed={seed}"]), "step 7")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = [", ["recipe.toml", "not TOML"]),
        ("[train]\niterations = 1\niterations = 2\n", ["not TOML", "line 3"]),
        ("\xff", ["recipe.toml:1", "not UTF-8"]),
        ("a = " + "[" * 5000, ["recipe.toml", "levels"]),
        ("a = " + "9" * 5000, ["recipe.toml", "digits"]),
        ("a = 0x" + "f" * 5000, ["recipe.toml", "digits"]),
        ("[model]\nkind = 'scenes'\n[data]\nkind = 'scenes'\n", ["missing"]),
        ("", ["missing"]),
    ],
)
def test_a_bad_recipe_file_is_one_line(text, words):
    Path("recipe.toml").write_bytes(text.encode("latin-1"))
    _refused(command("train", "recipe.toml"), *words)


def test_an_unknown_recipe_is_one_line():
    _refused(command("train", "flow-gpro"), "flow-gpro", 'Did you mean "scenes/flow-grpo"?')
    _refused(command("train", "scenes/flow-gpro"), 'Did you mean "scenes/flow-grpo"?')
    _refused(command("train", "here.toml"), "here.toml", "no such file")
    _refused(command("sft", "flow-grpo-fast"), "grpaint train")
    _refused(command("train", "sft"), "grpaint sft")


@pytest.mark.parametrize("body", ["x = 1 / 0", "def score(:", "raise RuntimeError('one\\ntwo')"])
def test_a_reward_file_that_cannot_be_imported_is_one_line(body):
    Path("mine.py").write_text(body)
    _refused(
        command("train", "flow-grpo-fast", sets=["rewards.mine.kind=mine.py:score"]),
        "rewards.mine.kind",
        "cannot be imported",
    )


def test_a_name_that_a_file_lacks_is_answered_with_those_that_it_has():
    Path("mine.py").write_text("import math\nclass Bright: pass\ndef score(images, prompts): pass\n")
    _refused(command("train", "flow-grpo-fast", sets=["rewards.a.kind=mine.py:scores"]), "it has Bright, score")
    Path("none.py").write_text("x = 1\n")
    _refused(command("train", "flow-grpo-fast", sets=["rewards.a.kind=none.py:score"]), "no class and no function")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(there.sigma**2 - 4) ** 0.5 and math.sqrt(-1), 0.1", ["math domain error", "mine.py, line 3, in noisy"]),
        ("0.1", ["a sampler returns (gain, std), and not 0.1"]),
        ("(1, 2, 3)", ["a sampler returns (gain, std), and not (1, 2, 3)"]),
        ("(math.nan, 1.0)", ["gain nan"]),
    ],
)
def test_a_sampler_of_the_users_that_fails_is_located(body, words):
    Path("mine.py").write_text(f"import math\ndef noisy(here, there):\n    return {body}\n")
    _refused(command("train", "flow-grpo-fast", sets=["plan.sampler.kind=mine.py:noisy"]), "plan.sampler", *words)


def test_an_own_dataclass_takes_settings():
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "class Plain:\n    def __call__(self, images, prompts): return images.mean((1, 2, 3))\n"
        "class Asks(Plain):\n    def __init__(self, share): pass\n"
        "@dataclass(frozen=True)\nclass Scaled(Plain):\n    share: float = 0.5\n"
    )
    _, plain = open_recipe("flow-grpo-fast", "train", ["rewards.mine.kind=mine.py:Plain"])
    assert plain["rewards"]["mine"] == {"kind": "mine.py:Plain", "weight": 1.0, "self_test": True}
    recipe, settings = open_recipe("flow-grpo-fast", "train", ['rewards.mine={kind="mine.py:Scaled",share=2,weight=3}'])
    assert settings["rewards"]["mine"] == {"kind": "mine.py:Scaled", "share": 2.0, "weight": 3.0, "self_test": True}
    assert recipe.rewards["mine"].reward.share == 2.0
    for bad, word in {
        'rewards.mine={kind="mine.py:Plain",share=1}': "takes no settings",
        'rewards.mine={kind="reward.py:score",share=1}': "takes no settings",
        "rewards.mine.kind=mine.py:Asks": "share",
        'rewards.mine={kind="mine.py:Scaled",shore=1}': 'Did you mean "share"?',
    }.items():
        _refused(command("train", "flow-grpo-fast", sets=[bad]), "rewards.mine", word)


def test_set_values_are_toml_or_else_texts():
    sets = ["a=1", "a.b=1e-3", "c=true", "d=[1, 2]", 'e="3"', "f=no quotes", "g={x=1}", " h.i = 4 ", "j=a=b", "k="]
    assert parse_sets(sets) == [
        (["a"], 1),
        (["a", "b"], 1e-3),
        (["c"], True),
        (["d"], [1, 2]),
        (["e"], "3"),
        (["f"], "no quotes"),
        (["g"], {"x": 1}),
        (["h", "i"], 4),
        (["j"], "a=b"),
        (["k"], ""),
    ]


def test_an_outer_kind_does_not_forget_an_inner_one_set_beside_it():
    inner, outer = "objective.penalty.kind=step-kl", "objective.kind=policy-gradient"
    table = {"objective": {"kind": "awm", "penalty": {"kind": "none"}}}
    for order in ([inner, outer], [outer, inner]):
        assert override(table, order)["objective"] == {"kind": "policy-gradient", "penalty": {"kind": "step-kl"}}


def test_a_new_kind_forgets_the_settings_of_the_old():
    table = {"plan": {"sampler": {"kind": "cps", "eta": 0.7}, "steps": 3}}
    assert override(table, ["plan.sampler.kind=ddim"])["plan"] == {"sampler": {"kind": "ddim"}, "steps": 3}
    assert override(table, ["plan.sampler.kind=cps"])["plan"]["sampler"] == {"kind": "cps", "eta": 0.7}
    for order in (
        ["plan.sampler.eta=0.2", "plan.sampler.kind=ddim"],
        ["plan.sampler.kind=ddim", "plan.sampler.eta=0.2"],
    ):
        assert override(table, order)["plan"]["sampler"] == {"kind": "ddim", "eta": 0.2}
    assert table["plan"]["sampler"] == {"kind": "cps", "eta": 0.7}


def test_settings_reach_the_pieces():
    sets = ["plan.sampler.kind=flow-sde", "plan.sampler.eta=1", "data.kinds=[\"two\", 'count']", "evaluate.prompts=1"]
    recipe, settings = open_recipe("flow-grpo-fast", "train", [*sets, "train.learning_rate=1"])
    assert recipe.plan.sampler == FlowSde(1.0)
    assert recipe.data.kinds == ("two", "count")
    assert recipe.evaluate.prompts == 1
    assert (recipe.train.learning_rate, settings["train"]["learning_rate"]) == (1.0, 1.0)
    assert open_recipe("flow-grpo-fast", "train", ["plan.sampler.kind=ddim"])[0].plan.sampler == Ddim()


def test_none_leaves_an_optional_table_out():
    sets = ["objective.penalty.kind=step-kl", "objective.penalty.beta=0.1"]
    table = override({}, sets)
    recipe, settings = open_recipe("flow-grpo-fast", "train", sets)
    assert recipe.objective.penalty.beta == 0.1
    again, plain = resolve(override(settings, ["objective.penalty=none", "plan.prune=none"]), "train")
    assert again.objective.penalty is None
    assert again.plan.prune is None
    assert "penalty" not in plain["objective"]
    assert table == {"objective": {"penalty": {"kind": "step-kl", "beta": 0.1}}}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_packaged_recipe_resolves_and_comes_back_from_its_run_toml(name):
    stage = stage_of(name)
    recipe, settings = open_recipe(name, stage)
    again, plain = resolve(tomllib.loads(tomli_w.dumps(settings)), stage)
    assert plain == settings
    assert again == recipe


def test_every_setting_comes_back_from_run_toml():
    sets = [
        tiny_runs.REWARD,
        "plan.prune={at=[2],keep=[8]}",
        'objective.penalty={kind="adaptive-kl",target=0.1}',
        "model.lora.rank=4",
        "advantage.kind=history",
        "loggers.board.kind=tensorboard",
        "train.updates=2",
        "train.optimizer.kind=muon",
    ]
    recipe, settings = open_recipe("scenes/flow-grpo-fast", "train", sets)
    again, plain = resolve(tomllib.loads(tomli_w.dumps(settings)), "train")
    assert plain == settings
    assert again.model.lora.rank == 4
    assert again.plan == recipe.plan
    assert again.train == recipe.train
    assert again.objective == recipe.objective


CLOSED = ['plan.window={kind="closed"}', "objective.kind=epg"]
SENSELESS = [
    (["objective.kind=diffusion-nft"], ["plan.window", "finished images", 'kind = "closed"']),
    (CLOSED, ["plan.start", "identical", 'kind = "independent"']),
    (
        [*CLOSED, "plan.start.kind=independent", "train.updates=2"],
        ["train.updates = 2", 'plan.weights = "behaviour"', "[behaviour]"],
    ),
    ([*CLOSED, "plan.start.kind=independent", "plan.weights=reference"], ['plan.weights = "reference"', "current"]),
    ([*CLOSED, "plan.start.kind=independent", "plan.weights=behaviour"], ["plan.weights", "[behaviour]", "both"]),
    (["behaviour={slope=0.1}"], ["plan.weights", "[behaviour]", "neither"]),
    (["plan.weights=behaviour", "behaviour={slope=-1}"], ["behaviour.slope and flat", "not be negative"]),
    (["plan.weights=behaviour", "behaviour={most=1}"], ["behaviour.most", "[0, 1)"]),
    (['plan.window={kind="closed"}'], ["plan.window", "likelihood"]),
]


@pytest.mark.parametrize(("sets", "words"), SENSELESS, ids=str)
def test_pieces_that_do_not_go_together_are_refused_before_weights_are_opened(sets, words):
    _refused(command("train", "flow-grpo-fast", sets=["model.start=nowhere.safetensors", *sets]), *words)


@pytest.mark.parametrize("key", CONTRACT)
def test_a_setting_of_the_contract_is_there(key):
    node = open_recipe("flow-grpo-fast", "train")[1]
    for part in key.split("."):
        node = node[part]


def test_recipes_open_from_anywhere_by_short_name():
    default = open_recipe(None, "train")[1]
    assert open_recipe("awm", "train")[1] == default == open_recipe("scenes/awm", "train")[1]
    assert isinstance(open_recipe("flow-grpo-fast", "train")[0].plan.sampler, Cps)
    assert open_recipe(None, "sft")[1] == open_recipe("sft", "sft")[1]
    Path("awm.toml").write_text(tomli_w.dumps(default | {"threads": 3}))
    assert open_recipe("awm.toml", "train")[0].threads == 3


def test_a_directory_in_place_of_a_recipe_is_refused():
    Path("recipe.toml").mkdir()
    with pytest.raises(ConfigError, match=r"recipe\.toml"):
        open_recipe("recipe.toml", "train")
