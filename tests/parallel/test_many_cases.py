"""Recipes drawn at random on the exact Gaussian model: every one computes on 2 and 3 ranks what it computes on one."""

import hypothesis.strategies as st
import pytest
import tomli_w
from equality import COUNTS, check_lines, largest, relative, train_everywhere
from hypothesis import HealthCheck, Phase, given, seed, settings

EACH, SIZES = 4, (1, 2, 3)  # recipes of a method
STEPS = 4
PIECES = "gaussian_pieces:"
LIKELIHOOD = ("flow-grpo", "mix", "pro", "dance", "ovf", "tafs", "sft-grpo", "ddpo")
FORWARD = ("awm", "diffusion-nft", "epg")

PLANS = {
    "flow-grpo": {"sampler": {"kind": "flow-sde"}},
    "mix": {
        "sampler": {"kind": "cps"},
        "start": {"kind": "shared"},
        "window": {"kind": "sliding", "size": 2, "every": 1},
    },
    "pro": {"sampler": {"kind": "flow-sde"}},
    "dance": {
        "sampler": {"kind": "dance-sde"},
        "start": {"kind": "shared"},
        "window": {"kind": "subset", "share": 0.6},
    },
    "ovf": {"sampler": {"kind": "cps"}, "window": {"kind": "prefix", "size": 2}},
    "tafs": {"sampler": {"kind": "flow-sde"}, "previews": True},
    "sft-grpo": {
        "sampler": {"kind": "flow-sde"},
        "start": {"kind": "reference", "strength": 0.8, "noise": "group"},
        "window": {"kind": "random", "size": 2, "low": 1, "high": 1},
    },
    "ddpo": {"sampler": {"kind": "ddim"}},
} | {name: {"window": {"kind": "closed"}, "weights": "behaviour"} for name in FORWARD}
ADVANTAGES = {
    "dance": [{"kind": "best-worst", "keep": 2}, {"kind": "best-worst", "keep": 4}],
    "ovf": [{"kind": "ovf", "keep": 3}],
    "tafs": [{"kind": "step-aware"}],
    "ddpo": [{"kind": "batch"}, {"kind": "history", "min_count": 3, "buffer": 6}],
}
ANY_ADVANTAGE = [
    {"kind": "group"},
    {"kind": "group", "std": "batch"},
    {"kind": "per-reward"},
    {"kind": "leave-one-out"},
]


@st.composite
def recipes(draw, method):
    """A recipe's tables: the sizes, and what of a group is left or flat."""
    objective = {"minibatch": draw(st.sampled_from([0, 1, 2, 5]))}
    train = {"iterations": 3, "learning_rate": 1e-2, "max_grad_norm": draw(st.sampled_from([0.05, 100.0]))}
    recipe = {
        "stage": "train",
        "threads": 1,
        "precision": "fp32",
        "model": {"kind": f"{PIECES}Gaussian", "diffusion": method == "ddpo"},
        "data": {"kind": f"{PIECES}Numbers"},
        "train": train,
        "objective": objective,
        "evaluate": {"every": 1000, "prompts": 3, "probe": 2, "steps": 2, "guided": [], "pictures": 0},
        "checkpoint": {"every": 1000},
    }
    if method == "sft":
        return recipe | {"stage": "sft", "train": train | {"batch": draw(st.integers(1, 7))}}
    prompts, group = draw(st.integers(1, 7)), draw(st.integers(1 if method == "ddpo" else 2, 6))
    advantage = draw(st.sampled_from(ADVANTAGES.get(method, ANY_ADVANTAGE)))
    plan, left = {"steps": STEPS} | PLANS[method], group
    if method == "pro":
        left = draw(st.integers(2, group))
        keep, close = draw(st.sampled_from([[left], [group, left]])), draw(st.booleans())
        prune = {"at": [1, 2][: len(keep) - close], "keep": keep, "close": close, "audit": draw(st.integers(0, 2))}
        plan |= {"prune": prune} | ({"window": {"kind": "sliding", "size": 2, "every": 1}} if close else {})
    train |= {"prompts": prompts, "group_size": group, "updates": draw(st.integers(1, min(3, prompts * left)))}
    if method in FORWARD:
        recipe["behaviour"] = {"slope": 0.1}
        objective |= {"kind": method, "draws": draw(st.integers(1, 2))}
    else:
        penalty = draw(st.sampled_from([None, "step-kl", "velocity-mse", "adaptive-kl"]))
        objective |= (
            {"penalty": {"kind": penalty} | ({"target": 0.01} if penalty == "adaptive-kl" else {})} if penalty else {}
        )
        objective |= {"terminal": 0.1} if method == "tafs" else {}
        train["retain"] = (
            train["updates"] == 1 and not objective["minibatch"] and draw(st.sampled_from([True, True, False]))
        )
    if draw(st.booleans()):
        recipe["anchor"] = {"weight": 0.1, "batch": draw(st.integers(1, 4))}
    if not train.get("retain") and draw(st.booleans()):
        train["parts"] = draw(st.integers(1, prompts))
    flat = draw(st.sampled_from([0, 0, (prompts + 1) // 2, (prompts + 1) // 2, prompts]))
    rewards = {"bright": {"kind": f"{PIECES}Bright", "flat": list(range(flat))}}
    if draw(st.sampled_from([False, False, True])):
        rewards["unlike"] = {"kind": f"{PIECES}Unlike", "weight": 0.5, "self_test": False}
    return recipe | {"plan": plan, "advantage": advantage, "rewards": rewards}


def draw_recipes(method):
    """The same ``EACH`` recipes every time, without the first, which is the smallest of all."""
    drawn = []

    @seed(method)
    @settings(max_examples=EACH + 1, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(recipes(method))
    def collect(recipe):
        drawn.append(recipe)

    collect()
    return drawn[1:]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Each case's recipe, and its numbers by the number of ranks."""
    folder, methods = tmp_path_factory.mktemp("cases"), ("sft", *LIKELIHOOD, *FORWARD)
    named = {f"{method}-{number}": recipe for method in methods for number, recipe in enumerate(draw_recipes(method))}
    for name, recipe in named.items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps(recipe))
    listed = {name: {"recipe": str(folder / f"{name}.toml"), "sets": []} for name in named}
    results = train_everywhere(listed, SIZES, folder)
    return {name: (recipe, {size: results(name, size) for size in SIZES}) for name, recipe in named.items()}


def refusal(recipe, size):
    """The line by which a recipe is refused on so many ranks, or an empty text."""
    train = recipe["train"]
    if recipe["stage"] == "sft":
        key, count, reason = "train.batch", train["batch"], ""
    elif "prune" in recipe["plan"] or "unlike" in recipe["rewards"]:
        key, count = "train.prompts", train["prompts"]
        reason = ", and groups are compared while they are sampled"
    else:
        key, count, reason = "train.prompts x train.group_size", train["prompts"] * train["group_size"], ""
    return f"{key} = {count}{reason}: too few for {size} processes; start at most {count}." if size > count else ""


def test_the_cases_cover_what_they_are_about(cases):
    trained = [recipe for recipe, _ in cases.values() if recipe["stage"] == "train"]
    for name in ("prompts", "group_size", "updates"):
        assert len({recipe["train"][name] for recipe in trained}) >= 3, name
    assert any(recipe["plan"].get("prune", {}).get("audit") for recipe in trained)
    assert any(recipe["train"].get("retain") for recipe in trained)
    assert any(0 < len(recipe["rewards"]["bright"]["flat"]) < recipe["train"]["prompts"] for recipe in trained)
    assert any(refusal(recipe, 3) for recipe in trained)


def test_every_case_computes_the_numbers_of_one_process_or_is_refused(cases):
    failures = []
    for name, (recipe, results) in cases.items():
        for size in SIZES[1:]:
            try:
                check_case(recipe, results[1], results[size], size)
            except AssertionError as error:
                failures.append(f"{name} on {size} ranks: {str(error)[:300]}\n{tomli_w.dumps(recipe)}")
    assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures)


def check_case(recipe, one, many, size):
    if refusal(recipe, size):
        assert many == {"refused": refusal(recipe, size)}
        return
    assert "refused" not in many, many
    for first, other in zip(one["updates"], many["updates"], strict=True):
        for name in ("x0", "numbers", "advantage"):
            assert first[name].shape == other[name].shape, name
    for name in ("x0", "advantage"):
        assert largest([one["updates"][0][name]], [many["updates"][0][name]]) <= 1e-5, name
    for first, other in zip(one["scores"][:1], many["scores"][:1], strict=True):
        assert first["texts"] == other["texts"]
        for name in first.keys() - {"texts"}:
            assert largest([first[name]], [other[name]]) <= 1e-5, name
    assert len(one["gradients"]) == len(many["gradients"])
    if one["gradients"]:
        assert relative(one["gradients"][0], many["gradients"][0]) <= 1e-5, "gradients"
    assert largest(one["weights"], many["weights"]) <= 1e-5, "weights"
    # a prompt that ranks divide takes its steps before the fork on each of them, and they are counted
    divided = recipe.get("plan", {}).get("start", {}).get("kind") == "shared" and recipe["train"]["prompts"] < size
    check_lines(one, many, counts=COUNTS[1:] if divided else COUNTS)
