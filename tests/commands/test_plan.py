"""``grpaint plan``: what it prints, that it opens no weights, and that its levers help."""

import copy
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

import tiny_pipelines
import tiny_runs
from grpaint.backends.synthetic.pipelines import save_settings
from grpaint.commands.estimate.forecast import forecast, parse_bytes
from grpaint.commands.estimate.levers import available_levers, find_levers
from grpaint.commands.estimate.ranks import forecast_ranks
from grpaint.commands.estimate.rehearsal import TraceCache
from grpaint.core.errors import ConfigError
from grpaint.recipe.config import locate, override, resolve
from grpaint.storage.reading import read_toml
from tiny_runs import TINY, command, process

ROOT = Path(__file__).parent.parent.parent
MIB = 2**20
SHORT = ("plan.steps=2", 'plan.window={kind="prefix",size=1}')  # a plan walks through every step


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def small(folder: Path, **model: object) -> dict[str, object]:
    """A recipe's table, of few rows and steps."""
    flow = folder.name in tiny_pipelines.FLOWS
    return {
        "model": {"kind": "diffusers", "base": str(folder), "height": 16, "width": 16, "lora": {"rank": 2}, **model},
        "data": {"kind": "prompts", "train": "absent.txt"},
        "plan": {
            "steps": 2,
            "sampler": {"kind": "flow-sde" if flow else "ddim"},
            "window": {"kind": "prefix", "size": 1},
        },
        "rewards": {"jpeg": {"kind": "jpeg"}},
        "train": {"iterations": 3, "learning_rate": 1e-3, "prompts": 1, "group_size": 4},
        "evaluate": {"prompts": 2, "steps": 1, "guided": []},
        "precision": "fp32",
        "device": "cpu",
    }


def test_no_weight_file_is_opened(tmp_path):
    folder = tiny_pipelines.save("sdxl", tmp_path)
    for number, file in enumerate(folder.rglob("*.safetensors")):
        file.write_bytes(b"no weights") if number % 2 else file.unlink()
    memory = forecast(small(folder), "train").memory
    assert memory.parameters == 442131 - 17408 + 17408 // 2  # of rank 2 here
    assert memory.peaks["update"] > memory.peaks["load"] == memory.weights + memory.copies


def test_cached_embeddings_leave_no_encoder_in_memory(tmp_path):
    """Beside the embeddings, and while a caption is encoded, the encoders are there; afterwards they are not."""
    folder = tiny_pipelines.save("sd3", tmp_path)
    held = forecast(small(folder), "train").memory
    freed = forecast(small(folder, embeddings="cache"), "train").memory
    encoders = held.weights - freed.weights
    assert encoders > 0
    assert freed.peaks["update"] == held.peaks["update"] - encoders
    assert freed.peaks["encode"] > freed.peaks["load"] + encoders


def test_the_commands_lines_and_its_json():
    end = command("plan", "flow-grpo-fast", sets=[*TINY, "precision=fp32", *SHORT])
    assert (end.code, end.err) == (0, "")
    for word in ("2,525,248 parameters", "rollout", "update", "model evaluations", "disk", "fp32"):
        assert word in end.out
    end = command(
        "plan", "flow-grpo-fast", "--gpu", "24GB", "--calibrate", "--json", sets=[*TINY, "precision=fp32", *SHORT]
    )
    report = json.loads(end.out)
    assert report["fits"]
    assert report["device"] == "cuda"
    assert report["limit"] == 24 * 10**9
    assert report["peak"] == max(report["peaks"].values()) + max(report["overhead"].values())
    assert (
        report["times"]["whole"]
        > report["times"]["iteration"]
        == pytest.approx(sum(report["times"]["phases"].values()))
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_the_time_of_rewards_is_part_of_an_iteration(parts):
    body = "    time.sleep(0.4)\n    return images.mean((1, 2, 3))\n"
    Path("slow.py").write_text(f"import time\n\ndef score(images, prompts):\n{body}")
    sets = [*TINY, "rewards={slow={kind='slow.py:score'}}", f"train.parts={parts}", "train.overlap=false"]
    end = command("plan", "flow-grpo-fast", "--calibrate", "--json", sets=sets)
    assert (end.code, end.err) == (0, "")
    assert json.loads(end.out)["times"]["iteration"] > 0.4


def test_judging_costs_what_the_plan_says():
    sets = [*TINY, tiny_runs.REWARD, "evaluate.guidance=2", "model.guidance=1"]
    report = json.loads(command("plan", "flow-grpo-fast", "--json", sets=sets).out)
    assert command("train", "flow-grpo-fast", "--name", "it", sets=sets).code == 0
    last = max(Path("runs/it/checkpoints").iterdir())
    assert report["evaluations"]["judging"] == json.loads((last / "state.json").read_text())["counts"]["evaluation"]


def test_a_plan_that_takes_too_long_says_why_and_what_to_lower():
    sets = ["train.prompts=50000", "evaluate.prompts=2"]
    # a process of its own: the signal may come within a check of types that only tests make, which takes it for its own
    running = process("plan", "flow-grpo-fast", "--minutes", "0.02", sets=[*TINY, *SHORT, *sets])
    error = running.communicate(timeout=600)[1]
    assert running.returncode == 2
    assert error.startswith("grpaint: plan: no answer within --minutes 0.02: it was still ")
    assert "--minutes" in error.splitlines()[-1]


def test_repeated_work_is_counted_once_and_changes_no_peak():
    few = [*TINY, "precision=fp32", *SHORT, "objective.minibatch=2", "anchor.batch=2"]
    tables = [
        override(read_toml(locate("flow-grpo-fast")), [*few, *more])
        for more in (["evaluate.steps=2"], ["evaluate.steps=900"])
    ]
    peaks = [forecast(table, "train").memory.peaks for table in tables]
    assert peaks[0] == peaks[1]
    many = override(read_toml(locate("awm")), ["objective.draws=1000", "evaluate.prompts=2", "train.prompts=1"])
    assert forecast(many, "train").evaluations[0] > 1000


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 10**9), ("24GiB", 24 * 2**30), ("1.5 mib", 3 * 2**19)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "0GB", "-1GB"])
def test_impossible_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="--gpu"):
        parse_bytes(text)


def test_levers_are_pasted_and_then_it_fits(tmp_path):
    """Rows of a batch in one graph do not fit; a part of them does. Levers may pull at what a recipe leaves out."""
    recipe = read_toml(locate("flow-grpo-fast"))
    del recipe["objective"]
    bare = tmp_path / "bare.toml"
    bare.write_text(tomli_w.dumps(recipe))
    sets = [*TINY, "precision=fp32", "train.prompts=2", "train.group_size=8", "anchor.batch=4", *SHORT]
    table = override(recipe, sets)
    now = forecast(table, "train", "cuda")
    most = sorted(now.memory.peaks.values())
    limit = now.peak - (most[-1] - most[-2]) // 2  # what only the largest phase exceeds
    words = ["plan", str(bare), "--minutes", "20", "--gpu", f"{limit / 2**20:.3f}MiB"]
    end = command(*words, sets=sets)
    assert "does not fit" in end.out
    pasted = re.findall(r"^  (--set .*?)  ", end.out, re.M)
    assert pasted
    assert any("objective.minibatch" in line for line in pasted)
    peaks = [float(peak) for peak in re.findall(r"^  --set .*?  +([\d.]+) GiB", end.out, re.M)]
    assert peaks == sorted(peaks, reverse=True)  # what one lever frees, none takes back
    again = command(*words, *[word for line in pasted for word in shlex.split(line)], sets=sets)
    assert re.search(r"MiB|GiB: fits", again.out)
    assert "GiB: fits" in again.out


def test_applied_levers_are_not_offered_again(tmp_path):
    folder = tiny_pipelines.save("sdxl", tmp_path)
    now = forecast(small(folder), "train")
    offered = []
    for model in ({"batch": 4, "height": 256, "width": 256}, {"batch": 1, "checkpointing": True, "vae_tiling": True}):
        recipe = resolve(small(folder, **model), "train")[0]
        known = available_levers(dataclasses.replace(now, recipe=recipe))
        offered.append([sets[0][0].split("=")[0] for sets in known if sets])
    assert offered[0][-1] == "model.height"
    assert {"model.vae_tiling", "model.batch", "model.checkpointing", "precision"} <= set(offered[0])
    assert not {"model.vae_tiling", "model.batch", "model.checkpointing", "model.lora.rank"} & set(offered[1])


def test_a_plan_after_others_is_the_plan_made_alone(tmp_path):
    """What is known of a model from earlier plans makes the next one quicker and changes nothing in it."""
    folder = tiny_pipelines.save("sd3", tmp_path)
    cache = TraceCache()
    for earlier in ({"batch": 4}, {"batch": 4, "vae_tiling": True}):
        forecast(small(folder, **earlier), "train", cache=cache)
    for later in ({"batch": 3}, {"batch": 2, "checkpointing": True}):
        after = forecast(small(folder, **later), "train", cache=cache)
        assert after.memory == forecast(small(folder, **later), "train").memory, later


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the process's own peak is read from /proc")
@pytest.mark.parametrize("size", ["xl-small", "sd3-small"])
def test_the_peak_of_a_real_process_is_near_the_plan(size):
    """The benchmark, in a process of its own whose allocator gives large blocks back (its docstring says why)."""
    sets = [
        *("precision=fp32", "train.prompts=1", "train.group_size=4", "plan.steps=2", "plan.window.size=1"),
        *(
            "plan.window.high=0",
            "evaluate.prompts=1",
            "evaluate.steps=1",
            "model.tokens=77",
            "model.checkpointing=false",
        ),
    ]
    done = subprocess.run(
        [sys.executable, "benchmarks/memory.py", "--size", size, *tiny_runs.flags(*sets)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", os.environ["PYTHONPATH"]])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ratios = dict(re.findall(r"^  (\w+) +measured .* ratio ([\d.]+)$", done.stdout, re.M))
    for phase in ("rollout", "update"):
        assert 0.8 <= float(ratios[phase]) <= 1.2, done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("size", ["ssd-1b", "sdxl", "sd3.5-medium"])
@pytest.mark.parametrize("pixels", [512, 1024])
def test_the_peak_on_a_gpu_is_near_the_plan(size, pixels):
    done = subprocess.run(
        [sys.executable, "benchmarks/memory.py", "--size", size, "--pixels", str(pixels)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ratios = re.findall(r"ratio ([\d.]+)$", done.stdout, re.M)
    assert all(0.85 <= float(ratio) <= 1.15 for ratio in ratios), done.stdout


def test_the_memory_of_ranks_follows_from_that_of_one_that_has_the_share_of_rows(tmp_path):
    folder = tiny_pipelines.save("sd3", tmp_path)
    train = {"iterations": 3, "learning_rate": 1e-3, "prompts": 3, "group_size": 4}
    table = small(folder) | {"train": train}
    plan = forecast_ranks(table, "train", "cpu", 2, 1)
    alone = forecast(override(table, ["train.prompts=2", "evaluate.prompts=1"]), "train", "cpu").memory
    none, base = plan.ways
    assert (none.shard, base.shard) == ("none", "base")
    assert none.peaks == alone.peaks
    assert none.call == 0
    adapter = 4 * alone.trainable
    assert base.call == (alone.network - adapter) // 2
    assert none.weights - base.weights == base.call
    assert none.peaks["decode"] - base.peaks["decode"] == base.call
    assert base.peaks["rollout"] == none.peaks["rollout"] - base.call + 3 * alone.block + alone.rest
    assert plan.recommended(max(none.peaks.values())) == "none"
    assert plan.recommended(1) is None
    full = copy.deepcopy(table)
    del full["model"]["lora"]
    whole, shares = forecast_ranks(full, "train", "cpu", 4, 2).ways
    assert shares.shard == "all"
    kept = forecast(override(full, ["train.prompts=1", "evaluate.prompts=1"]), "train", "cpu").memory
    state = kept.network + kept.copies + kept.optimizer
    assert whole.peaks["decode"] - shares.peaks["decode"] == pytest.approx(state / 2, abs=1)
    for sets, reason in (("--nodes 2", "equally many"), ("", "too few")):
        with pytest.raises(ConfigError, match=reason):
            forecast_ranks(table, "train", "cpu", 3 if sets else 50, 2 if sets else 1)


def test_ranks_of_one_machine_are_offered_to_divide_the_network(tmp_path):
    folder = save_settings("sd3-small", tmp_path / "sd3")
    train = {"iterations": 3, "learning_rate": 1e-3, "prompts": 4, "group_size": 4}
    split = {"batch": 1, "vae_batch": 1, "vae_tiling": True, "embeddings": "cache", "checkpointing": True}
    table = small(folder, height=64, width=64, **split) | {"train": train}
    table["objective"] = {"kind": "policy-gradient", "minibatch": 1}

    def predict(changed, cache=None):
        return forecast_ranks(changed, "train", "cpu", 4, 1, cache).rank(resolve(changed, "train")[0])

    whole = predict(table)
    lever = "processes.shard=base"
    assert [(lever,)] in list(available_levers(whole, ranks=4))
    assert [(lever,)] not in list(available_levers(whole))
    way = forecast_ranks(table, "train", "cpu", 4, 1).ways[1]
    divided = predict(override(table, [lever]))
    assert divided.memory.peaks == way.peaks
    assert divided.recipe.train.prompts == 4
    assert [(lever,)] not in list(available_levers(divided, ranks=4))
    full = copy.deepcopy(table)
    del full["model"]["lora"]
    now = dataclasses.replace(whole, recipe=resolve(full, "train")[0])
    assert [("processes.shard=all",)] in list(available_levers(now, ranks=4))
    pulled = find_levers(table, whole, predict, limit=divided.peak, ranks=4)
    assert lever in {item for found in pulled for item in found.sets}


def test_the_plan_of_processes_is_printed_and_is_in_the_json():
    sets = [item for item in TINY if "window" not in item]
    done = command("plan", "scenes/awm", "--processes", "2", sets=sets)
    assert done.code == 0, done.err
    assert "2 processes on one machine" in done.out
    assert "recommended" not in done.out  # without --gpu there is no limit
    plain = json.loads(command("plan", "scenes/awm", "--processes", "2", "--json", sets=sets).out)["processes"]
    assert plain["count"] == 2
    assert list(plain["shard"]) == ["none"]
