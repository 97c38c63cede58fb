"""``[deploy]``: a model is judged and drawn as it will be used, beside the sampler of ``[evaluate]``."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_runs
from grpaint.backends.diffusers import DiffusersPolicy
from grpaint.commands.export.push import card
from grpaint.core import Cps, Ode
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Runtime
from grpaint.judge import evaluate, judging_rewards, sample
from grpaint.measures.score import comparable_score, deciding_line, with_deployment
from grpaint.recipe.build import build
from grpaint.recipe.config import TrainRecipe, override, resolve
from grpaint.recipe.deployment import Deployment
from grpaint.rollout import Plan, Tail, roll
from grpaint.rollout.window import Closed
from grpaint.run.alarm import check_hacking
from grpaint.run.folder import RunFolder
from grpaint.storage.files import digest, read_weights, write_weights
from grpaint.storage.reading import read_toml
from tiny_adapters import adapted, save_diffusers
from tiny_pipelines import recipe, save, stock
from tiny_runs import Ended, command

FILE = "pytorch_lora_weights.safetensors"


def trained_recipe(folder: Path, *frozen: dict[str, Any], **deploy: Any) -> tuple[TrainRecipe, DiffusersPolicy]:
    """A recipe with ``[deploy]``, and its policy with an adapter that has left its zeros."""
    settings = recipe(folder, frozen=frozen)
    settings = replace(settings, deploy=Deployment(**deploy), evaluate=replace(settings.evaluate, prompts=3))
    policy = settings.model.load(Runtime())
    assert isinstance(policy, DiffusersPolicy)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.blend("average", 0)
    return settings, policy


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])  # DDIM, Euler, Euler on a flow
def test_scores_are_those_of_the_stock_pipeline_with_its_scheduler(tmp_path: Path, name: str) -> None:
    folder = save(name, tmp_path)
    network = "transformer" if name == "sd3" else "unet"
    turbo = save_diffusers(adapted(folder, network), tmp_path / "turbo", network)
    frozen = {"path": str(turbo), "name": "turbo", "weight": 0.6, "training": False}
    settings, policy = trained_recipe(folder, frozen, steps=5, guidance=2.5)
    data, rewards, deployed = settings.data, judging_rewards(settings), settings.deployed
    assert deployed is not None
    line = evaluate(policy, data, deployed, rewards=rewards)
    assert (line["steps"], line["guidance"], line["frozen"]) == (5, 2.5, ["turbo"])
    assert isinstance(deployed.sampler, Ode)

    tensors, _ = policy.export("average")
    write_weights(tmp_path / "lora.safetensors", tensors, {})
    pipe = stock(folder)
    for path, weight in ((turbo / FILE, 0.6), (tmp_path / "lora.safetensors", 1.0)):
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        pipe.fuse_lora(lora_scale=weight)
        pipe.unload_lora_weights()
    prompts = data.held_out(3, deployed.seed)
    length = {"max_sequence_length": 16} if name == "sd3" else {}
    images = pipe(
        prompt=[prompt.text for prompt in prompts],
        latents=policy.noise((deployed.seed, 0, "start"), range(3)),
        num_inference_steps=5,
        guidance_scale=2.5,
        height=16,
        width=16,
        output_type="pt",
        **length,
    ).images
    assert (sample(policy, prompts, deployed) - images).abs().max() < 1e-4
    assert rewards is not None
    expected = rewards.score(images, prompts).columns["jpeg"]
    assert line["reward/jpeg_by_prompt"] == pytest.approx(expected.tolist(), abs=1e-3)
    other = evaluate(policy, data, settings.evaluate, rewards=rewards)["reward/jpeg_by_prompt"]
    assert other != pytest.approx(expected.tolist(), abs=1e-3)


def test_order_two_and_noisy_samplers_draw_as_in_rollouts(tmp_path: Path) -> None:
    settings, policy = trained_recipe(save("sd3", tmp_path), steps=4, order=2)
    prompts = settings.data.held_out(2, 0)
    first = sample(policy, prompts, replace(settings, deploy=Deployment(4)).drawing)
    second = sample(policy, prompts, settings.drawing)
    plan = Plan(4, window=Closed(), tail=Tail(1.0, 2), weights="average")
    rollout = roll(policy, prompts, 1, plan, iteration=0, seed=settings.evaluate.seed)
    assert torch.equal(second, policy.decode(rollout.x0))
    assert (second - first).abs().max() > 1e-3
    noisy = replace(settings, deploy=Deployment(4, sampler=Cps(0.8))).drawing
    assert torch.equal(sample(policy, prompts, noisy), sample(policy, prompts, noisy))  # paired noise in every step
    assert (sample(policy, prompts, noisy) - first).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["deploy.order=2", 'deploy.sampler.kind="cps"'], "deploy.order = 2: its solver takes steps without noise"),
        (["deploy.steps=0"], "deploy.steps must be"),
        (["deploy.guidance=-1"], "deploy.guidance must not be negative"),
        (['deploy.frozen=["x"]'], r'deploy.frozen = "x": no such adapter in \[\[model.frozen\]\]. There are: none'),
        (["deploy.order=3"], "deploy.order = 3: not a choice"),
        (['deploy.sampler.kind="ddim"', "deploy.sampler.eta=2"], "deploy.sampler.eta must lie in"),
        (['model.frozen=[{path="a", name="x"}]'], "model.frozen: no such setting"),
        (["deploy={}"], "deploy.steps is missing"),
    ],
)
def test_what_cannot_be_used_so_is_refused_before_weights_are_opened(sets: list[str], message: str) -> None:
    table = read_toml(Path("src/grpaint/recipes/scenes/flow-grpo.toml"))
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(override(table, ["deploy.steps=4", *sets]), "train")
    assert "\n" not in str(caught.value)


def test_a_distilled_guidance_is_not_set_again(tmp_path: Path) -> None:
    settings = recipe(save("flux-dev", tmp_path))
    with pytest.raises(ValueError, match=r"deploy.guidance = 3: this model's guidance is distilled into it"):
        replace(settings, deploy=Deployment(4, guidance=3.0))


RECIPE = """
precision = "fp32"
[model]
kind = "diffusers"
base = "{root}/sd15"
height = 16
width = 16
lora = {{ rank = 4 }}
[[model.frozen]]
path = "{root}/turbo"
name = "turbo"
weight = 0.7
training = false
[[model.frozen]]
path = "{root}/base"
name = "de-distil"
[data]
kind = "prompts"
train = "prompts.txt"
held_out_share = 0.5
[plan]
steps = 3
sampler = {{ kind = "ddim" }}
[rewards.bright]
kind = "bright.py:bright"
[train]
iterations = 2
prompts = 1
group_size = 4
learning_rate = 1e-2
[evaluate]
every = 1
prompts = 4
steps = 3
guidance = 3.0
guided = []
pictures = 2
[deploy]
steps = 2
guidance = 1.5
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, mine.toml, and its files."""
    root = tmp_path_factory.mktemp("deployed")
    pipe = adapted(save("sd15", root))
    save_diffusers(pipe, root / "turbo")
    for name, parameter in pipe.unet.named_parameters():
        parameter.data *= 0.5 if "lora_B" in name else 1
    save_diffusers(pipe, root / "base")
    (root / "mine.toml").write_text(RECIPE.format(root=root))
    (root / "prompts.txt").write_text("".join(f"a {word} cat\n" for word in ("red", "big", "old", "sad") * 2))
    (root / "bright.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    return root


@pytest.fixture(scope="module")
def ended(here: Path) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        done = command("train", "mine.toml")
        assert done.code == 0, done.err
        return done


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_a_run_is_judged_both_ways_and_its_best_is_chosen_as_deployed(here: Path, ended: Ended) -> None:
    run = here / "runs/mine"
    judged = lines(run)
    assert len(judged) == 3
    for line in judged:
        assert (line["steps"], line["guidance"]) == (3, 3.0)
        assert (line["deploy"]["steps"], line["deploy"]["guidance"]) == (2, 1.5)
        assert line["deploy"]["frozen"] == ["turbo", "de-distil"]
        assert line["deploy"]["reward"] != line["reward"]
    state = json.loads(next((run / "checkpoints").glob("000002/state.json")).read_text())
    scores = [line["deploy"][line["score"]] for line in judged]
    assert state["best"] == [max(scores), scores.index(max(scores))]
    assert "as deployed: 2-step ode, guidance 1.5, frozen turbo, de-distil" in " ".join(ended.out.split())
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["policy/ratio_error"] == 0
    assert "Score as deployed" in (run / "report.html").read_text()
    assert '"as deployed"' in (run / "report.html").read_text()


def test_a_resumed_run_is_the_same_to_the_last_bit(here: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    assert command("train", "mine.toml", "--name", "twice", sets=["train.iterations=1"]).code == 0
    again = command("train", "mine.toml", "--name", "twice", "--resume", sets=["train.iterations=2"])
    assert again.code == 0, again.err
    assert lines(here / "runs/twice") == lines(here / "runs/mine")
    files = [here / f"runs/{name}/checkpoints/000002/training.safetensors" for name in ("mine", "twice")]
    assert digest(files[0]) == digest(files[1])
    refused = command("train", "mine.toml", "--name", "twice", "--resume", sets=["deploy.steps=3"])
    assert refused.code == 2
    assert "deploy.steps = 3" in refused.err


def drawn(*words: str) -> tuple[dict[str, Any], bytes, str]:
    """The metadata, the pixels and the path of the picture that ``grpaint sample`` has drawn."""
    done = command("sample", *words)
    assert done.code == 0, done.err
    path = done.out.splitlines()[-1]
    with Image.open(path) as picture:
        return json.loads(picture.info["grpaint"]), picture.tobytes(), path


def test_samples_are_drawn_as_deployed_or_by_evaluate(
    here: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    facts, pixels, picture = drawn("mine", "a red circle")
    assert (facts["steps"], facts["guidance"]) == (2, 1.5)
    assert [(each["name"], each["weight"]) for each in facts["frozen"]] == [("turbo", 0.7), ("de-distil", 1.0)]
    assert facts["frozen"][0]["sha256"] == digest(here / "turbo" / FILE)
    assert drawn("--like", picture)[:2] == (facts, pixels)
    trained, by_evaluate, _ = drawn("mine", "a red circle", "--no-deploy")
    assert (trained["steps"], [each["name"] for each in trained["frozen"]]) == (3, ["de-distil"])
    fewer, without, again = drawn("mine", "a red circle", "--without-frozen", "turbo", "--steps", "3")
    assert (fewer["steps"], [each["name"] for each in fewer["frozen"]]) == (3, ["de-distil"])
    assert len({pixels, by_evaluate, without}) == 3
    assert drawn("--like", again)[:2] == (fewer, without)
    for words, message in [
        (["sample", "mine", "a", "--without-frozen", "x"], "no such frozen adapter is on. There are: turbo, de-distil"),
        (["sample", "--like", picture, "--set", "model.frozen=[]"], 'with the frozen adapter "turbo" x 0.7'),
        (["sample", "mine", "a", "--no-deploy", "--set", "deploy.steps=4"], "do not draw by [deploy]"),
        (["sample", "--like", picture, "--set", "deploy={steps=4}"], "do not draw by [deploy]"),
        (["export", "mine", "--without-frozen", "turbo"], "--for diffusers writes the trained adapter alone"),
    ]:
        refused = command(*words)
        assert refused.code == 2
        assert message in refused.err
        assert refused.err.count("\n") == 1


def test_a_snippet_draws_the_same_with_diffusers_alone(
    here: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    script = command("sample", "mine", "a red circle", "--snippet").out
    assert "pipe.set_adapters(['trained', 'frozen-turbo', 'frozen-de-distil'], [1.0, 0.7, 1.0])" in script
    names: dict[str, Any] = {}
    exec(script.replace('image.save("image.png")', ""), names)
    facts, pixels, _ = drawn("mine", "a red circle")
    ours = Image.frombytes("RGB", (256, 256), pixels).resize((16, 16), Image.Resampling.NEAREST)
    difference = torch.frombuffer(bytearray(ours.tobytes()), dtype=torch.uint8).int()
    difference -= torch.frombuffer(bytearray(names["image"].tobytes()), dtype=torch.uint8).int()
    assert difference.abs().max() <= 1
    assert facts["steps"] == 2


def test_frozen_adapters_are_in_a_merged_export_alone(
    here: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    for words in (["diffusers"], ["merged"], ["merged", "--without-frozen", "turbo"]):
        done = command("export", "mine", "--for", *words, "--out", "-".join(words))
        assert done.code == 0, done.err
    tensors, _ = read_weights(here / "diffusers" / FILE)
    assert all(len(tensor) == 4 or tensor.shape[1] == 4 for tensor in tensors.values())  # of the trained one's rank
    merged = {
        name: json.loads((here / name / "grpaint.json").read_text())["frozen"]
        for name in ("merged", "merged---without-frozen-turbo")
    }
    assert [[each["name"] for each in adapters] for adapters in merged.values()] == [
        ["turbo", "de-distil"],
        ["de-distil"],
    ]
    unet = [stock(here / name).unet.state_dict() for name in merged]
    key = next(name for name in unet[0] if name.endswith("attn2.to_q.weight"))
    turbo, _ = read_weights(here / "turbo" / FILE)
    layer = f"unet.{key.removesuffix('.weight')}"
    change = turbo[f"{layer}.lora_B.weight"] @ turbo[f"{layer}.lora_A.weight"] * 2  # alpha / rank
    assert (unet[0][key] - unet[1][key] - 0.7 * change).abs().max() < 1e-6


def test_evaluate_judges_models_as_deployed_beside_the_other(
    here: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    one = command("evaluate", "mine", "--trust")
    assert "Held-out prompts (4), 3-step ode" in one.out
    assert "as deployed: 2-step ode" in one.out
    line, last = json.loads(command("evaluate", "mine", "--json", "--trust").out), lines(here / "runs/mine")[-1]
    assert line["deploy"]["reward_by_prompt"] == last["deploy"]["reward_by_prompt"]
    several = command("evaluate", "mine:base", "mine", "--json", "--trust", sets=["measure.draws=10"])
    assert several.code == 0, several.err
    result = json.loads(several.out)
    assert result["protocols"] == ["free generation", "as deployed"]
    (reward,) = [m for m in result["measures"] if (m["measure"], m["protocol"]) == ("reward", "as deployed")]
    assert reward["values"]["base"]["value"] == pytest.approx(lines(here / "runs/mine")[0]["deploy"]["reward"])
    assert (reward["card"]["steps"], reward["card"]["frozen"]) == (2, ["turbo", "de-distil"])


def test_models_of_other_frozen_adapters_are_judged_by_named_ones_alone(
    here: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    shutil.copytree("runs/mine", "runs/plain")
    settings = Path("runs/plain/run.toml")
    text = settings.read_text()
    settings.write_text(text.replace('name = "turbo"', 'name = "other"'))
    refused = command("evaluate", "plain", "mine", "--trust")
    assert refused.code == 2
    assert "plain: its frozen adapters are other, de-distil, mine's turbo, de-distil; name in" in refused.err
    assert refused.err.count("\n") == 1


def test_show_and_plan_count_what_it_costs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    costs = json.loads(command("show", "mine.toml", "--json").out)["costs"]
    assert costs["evaluations_deploy"] == 4 * 2 * 2  # prompts, steps, guidance
    plan = json.loads(command("plan", "mine.toml", "--json").out)
    assert plan["evaluations"]["judging"] == 3 * (
        4 * 3 * 2 + 16 + 256
    )  # three times, with evaluate's own and the probe
    assert "frozen turbo x 0.7, off in training; frozen de-distil x 1" in command("show", "mine.toml").out


def test_where_pictures_have_no_score_the_denoising_loss_decides() -> None:
    loss = {"score": "denoising_loss"}
    line = with_deployment({"iteration": 3, "denoising_loss": 2.0, **loss}, {"steps": 4, **loss})
    assert comparable_score(deciding_line(line)) == -2.0
    line = with_deployment({"iteration": 3, "reward": 2.0, "score": "reward"}, {"reward": 5.0, "score": "reward"})
    assert deciding_line(line) == {"iteration": 3, "reward": 5.0, "score": "reward"}


def test_an_alarm_that_only_the_deployed_model_raises_counts(tmp_path: Path) -> None:
    def judged(iteration: int, reward: float, spread: float) -> dict[str, Any]:
        values = {"reward": reward, "image/spread": spread}
        return {"iteration": iteration, "score": "reward", **values} | {
            f"{name}_by_prompt": [value, value + 0.01] for name, value in values.items()
        }

    folder, settings = RunFolder(tmp_path), recipe(save("sd15", tmp_path))
    folder.append(
        "evaluations.jsonl", judged(0, 1.0, 1.0) | {"prompts": 2, "steps": 2, "deploy": deployment(judged(0, 1.0, 1.0))}
    )
    calm = judged(1, 2.0, 1.0)
    assert check_hacking(settings, folder, calm | {"deploy": deployment(calm)}, 0)[1] is None
    line, alarm = check_hacking(settings, folder, calm | {"deploy": deployment(judged(1, 2.0, 0.1))}, 0)
    assert alarm is not None
    assert line["hacking"]["began"] == 1


def deployment(line: dict[str, Any]) -> dict[str, Any]:
    """The same line as one of ``[deploy]``."""
    own = {"prompts": 2, "steps": 1, "guidance": 1.0, "sampler": {"kind": "ode"}, "frozen": []}
    return {key: value for key, value in line.items() if key != "iteration"} | own


def test_a_model_card_says_where_frozen_adapters_are() -> None:
    frozen = [{"path": "/home/me/a.safetensors", "name": name, "weight": 0.5} for name in ("in", "out")]
    about = {"base": "owner/name", "family": "sdxl", "base_sha256": "0", "license": ""}
    about |= {"recipe": {"model": {"frozen": frozen}}, "frozen": [{"name": "in", "weight": 0.5, "sha256": "1"}]}
    text = card("me/mine", "merged", about, [])
    assert "- Frozen adapter in x 0.5, a.safetensors: merged into these files" in text
    assert "- Frozen adapter out x 0.5, a.safetensors: not in these files; load it beside them" in text
    assert "/home/me" not in text


def test_the_examples_of_the_documentation_are_recipes(tmp_path: Path) -> None:
    page = Path("docs/models.md").read_text()
    blocks = [block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[[model.frozen]]" in block]
    for block, name in zip(blocks, ("sdxl", "z-image"), strict=True):
        table = tomllib.loads(block)
        own = recipe(save(name, tmp_path), frozen=table["model"]["frozen"])
        settings = replace(own, deploy=build(Deployment, table["deploy"], "deploy")[0])
        assert settings.deployed is not None
        assert settings.deployed.frozen == (("turbo",) if name == "sdxl" else ())
        assert (settings.model.frozen[0].training, settings.deployed.steps) == {  # type: ignore[attr-defined]
            "sdxl": (False, 4),
            "z-image": (True, 8),
        }[name]


def test_methods_that_are_used_differently_are_not_compared(tmp_path: Path) -> None:
    with tiny_runs.folder(tmp_path, keep=False):
        words = ["flow-grpo", "other=flow-grpo:deploy.steps=4", "--budget-evaluations", "100", "--dry-run"]
        refused = command("compare", *words)
    assert refused.code == 2
    assert "other: its [deploy] or frozen adapters are not those of flow-grpo" in refused.err
