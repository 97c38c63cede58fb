"""The command line: what it offers, what it imports, what it prints."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from PIL import Image
from rich.console import Console

import tiny_runs
from grpaint import cli
from grpaint.core.runtime import Runtime
from grpaint.recipe.config import open_recipe, recipe_names
from grpaint.report.terminal import before_after_table
from tiny_runs import EMBEDDED, TINY, command, flags

pytestmark = pytest.mark.usefixtures("small_network")

COMMANDS = {
    "train": "recipe --set --name --runs --resume --processes --max-restarts",
    "sft": "recipe --set --name --runs --resume --processes --max-restarts",
    "sample": "source prompts --seed --out --steps --guidance --like --snippet --without-frozen --no-deploy --set "
    "--trust",
    "export": "source --for --out --check --push --without-frozen --set --trust",
    "doctor": "recipe --set --json --trust --processes",
    "fetch": "recipe --to --dry-run --set --trust",
    "evaluate": "sources --out --few --keep --json --set --trust --processes",
    "show": "recipe --set --processes --json --trust",
    "plan": "recipe --gpu --calibrate --minutes --processes --nodes --json --set --trust",
    "compare": "methods --seeds --budget-evaluations --budget-minutes --world --only --shard --search --baseline "
    "--processes --dry-run --out --set",
    "report": "run --single",
    "view": "runs --port --token-file",
    "list": "what --json",
    "data scan": "where --sheet --set --json --trust",
    "data captions": "where --out --draws --set --trust",
    "data draw": "--out --count --held-out --seed --size",
    "data prompts": "recipe --prompts --captions --set --json --trust --processes",
    "reward serve": "reward --port --host --token-env --token-file --max-mib --timeout --batch --threads --set",
    "vote": "run --host --port --voters --voter --export",
    "reward try": "reward --images --prompts --references --json --set",
}


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    with tiny_runs.folder(tmp_path_factory.mktemp("cli")) as here:
        assert command("train", "flow-grpo-fast", "--name", "one", sets=[*TINY, tiny_runs.REWARD]).code == 0
    return here / "runs/one"


def _commands():
    """The command line's commands by name."""
    group = typer.main.get_command(cli.app)
    return {
        " ".join([name, *more]): command
        for name, sub in group.commands.items()
        for more, command in ([([n], c) for n, c in sub.commands.items()] if hasattr(sub, "commands") else [([], sub)])
    }


def test_the_commands_and_their_flags_are_pinned():
    flags_found = {
        name: " ".join(param.opts[0] for param in command.params if param.name != "help")
        for name, command in _commands().items()
    }
    old_names = {"prompts scan": COMMANDS["data prompts"], "serve-reward": COMMANDS["reward serve"]}
    assert flags_found == COMMANDS | old_names


def test_help_has_panels_and_an_example_that_is_a_command():
    panels = re.findall(r"╭─ (\w+) ─", command("--help").out)
    assert panels == ["Options", "Train", "Judge", "Prepare", "Share", "Rewards"]
    for name, each in _commands().items():
        if name not in ("prompts scan", "serve-reward"):
            _, _, words = each.epilog.partition("Example:  grpaint ")
            assert words.startswith(f"{name} ")
            given = shlex.split(words)[len(name.split()) :]
            assert each.make_context(name, given).params  # refuses flags that there are not


@pytest.mark.parametrize(
    ("old", "new"), [(("prompts", "scan"), "data prompts"), (("serve-reward", "x", "--port", "-1"), "reward serve")]
)
def test_an_old_name_is_understood_and_names_the_new_one(old, new):
    end = command(*old, sets=["nothing=1"])
    assert end.code == 2
    first, second = end.err.splitlines()
    assert first.endswith(f"is now `grpaint {new}`; the old name will go.")
    assert second.startswith("grpaint: ")
    assert old[0] not in re.findall(r"│ (\S+)", command("--help").out)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("grpaint tr", {"train"}),
        ("grpaint data ", {"scan", "captions", "draw", "prompts"}),
        ("grpaint show mix-grpo", {"mix-grpo", "mix-grpo-flash", "mix-grpo-flash-star"}),
        ("grpaint sample on", {"one", "only"}),
    ],
)
def test_a_shell_completes_commands_recipes_and_runs(line, words):
    for name in ("one", "only", "other"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "run.toml").touch()
    given = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_GRPAINT_COMPLETE": "complete_bash"}
    program = "import sys; from grpaint.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | given
    )
    assert set(done.stdout.split()) == words


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["data", "scan", "--help"], ["reward", "try", "--help"]]
)
def test_help_imports_nothing_heavy(words):
    program = (
        "import sys; from grpaint.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


@pytest.mark.parametrize("topic", ["methods", "recipes", "models", "rewards", "samplers"])
def test_list_says_a_line_about_each(topic):
    plain, listing = command("list", topic), json.loads(command("list", topic, "--json").out)
    assert plain.code == 0
    assert [line.split()[0] for line in plain.out.splitlines()] == list(listing)
    spoken = [" ".join(line.split()) for line in plain.out.splitlines()]
    assert spoken == [" ".join([name, *about.split()]) for name, about in listing.items()]


def test_list_has_what_the_catalog_has():
    listings = {t: json.loads(command("list", t, "--json").out) for t in ("recipes", "models", "rewards", "samplers")}
    assert list(listings["recipes"]) == recipe_names()
    assert {"scenes", "diffusers"} <= listings["models"].keys()
    assert "scenes-checker" in listings["rewards"]
    assert {"flow-sde", "cps", "ddim", "ode"} <= listings["samplers"].keys()
    methods = json.loads(command("list", "--json").out)
    assert "default" in methods["awm"]
    assert "sft" not in methods
    end = command("list", "sampler")
    assert end.code == 2
    assert end.err.count("\n") == 1


def test_show_opens_no_weights():
    end = command("show", "flow-grpo-fast", "--json", sets=["model.start=nowhere.safetensors"])
    assert end.code == 0
    shown = json.loads(end.out)
    assert shown["settings"]["model"]["start"] == "nowhere.safetensors"
    assert not Path("runs").exists()


def test_show_has_steps_batches_costs_and_memory():
    sets = ["plan.steps=4", 'plan.window={kind="prefix",size=2}', "plan.sampler.kind=flow-sde", "plan.sampler.eta=0.7"]
    end = command(
        "show", "flow-grpo-fast", "--json", sets=[*sets, "train.prompts=3", "train.group_size=4", "train.updates=5"]
    )
    shown = json.loads(end.out)
    steps, costs = shown["steps"], shown["costs"]
    assert [row["sigma"] for row in steps] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [row["noisy"] for row in steps] == [True, True, False, False]
    # at sigma = 1 the diffusion takes the next sigma of the grid; gain = sigma' - std^2 / (2 sigma)
    g2 = [0.7**2 * 1 / (1 - 0.75), 0.7**2 * 0.75 / 0.25]
    stds = [(0.25 * g) ** 0.5 for g in g2]
    assert [row["std"] for row in steps] == pytest.approx([*stds, 0, 0])
    gains = [0.75 - stds[0] ** 2 / 2, 0.5 - stds[1] ** 2 / 1.5, 0.25, 0]
    assert [row["gain"] for row in steps] == pytest.approx(gains)
    assert (costs["images"], costs["updates"], costs["rows_an_update"]) == (12, 5, 3)
    assert costs["evaluations_rollout"] == 4 * 12  # rows of a group part at the first noisy step, here the first
    assert costs["evaluations_update"] == 3 * 2 * 12 + 5 * 3 * 48  # and the anchor, in every update
    assert costs["evaluations_iteration"] == costs["evaluations_rollout"] + costs["evaluations_update"]
    assert costs["evaluations_pictures"] == 8 * 20  # images x steps, without guidance
    assert costs["kept_mib"] == pytest.approx(12 * 3072 * 4 * (3 * 2 + 1) / 2**20, abs=0.01)
    output = command(
        "show", "flow-grpo-fast", sets=[*sets, "train.prompts=3", "train.group_size=4", "train.updates=5"]
    ).out
    for word in (
        "sigma",
        "gain",
        "std",
        "noisy",
        "group size",
        "evaluations iteration",
        "kept mib",
        "[train.optimizer]",
    ):
        assert word in output


def test_show_divides_an_iteration_among_processes():
    sets = ["train.prompts=5", "train.group_size=4", "model.start=random"]
    plain = json.loads(command("show", "flow-grpo-fast", "--json", sets=sets).out)
    shown = json.loads(command("show", "flow-grpo-fast", "--json", "--processes", "3", sets=sets).out)
    division = shown.pop("processes")
    assert shown == plain
    trained = open_recipe("flow-grpo-fast", "train", sets)[0].model.load(Runtime()).parameters()
    numbers = sum(parameter.numel() for parameter in trained)
    assert division == {"count": 3, "rows": [8, 8, 4], "imbalance": 1.2, "gradient_bytes": 4 * numbers}
    output = command("show", "flow-grpo-fast", "--processes", "3", sets=sets).out
    assert re.search(r"rows of each process +8 8 4\n", output)
    assert f"{4 * numbers:,}" in output
    refused = command("show", "pro-grpo", "--processes", "6", sets=["train.prompts=5"])
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "train.prompts = 5" in refused.err


def test_show_leaves_out_the_gradients_of_a_model_that_it_does_not_know():
    Path("mine.py").write_text("from grpaint.backends.scenes import Scenes\n\n\nclass Mine(Scenes):\n    pass\n")
    sets = ['model.kind="mine.py:Mine"']
    end = command("show", "flow-grpo-fast", "--json", "--processes", "2", sets=sets)
    assert end.code == 0, end.err
    assert json.loads(end.out)["processes"].keys() == {"count", "rows", "imbalance"}
    assert "not known" in command("show", "flow-grpo-fast", "--processes", "2", sets=sets).out


def test_show_reads_every_packaged_recipe():
    for name in EMBEDDED:
        assert command("show", name).code == 0, name


def test_sample_draws_captions(run):
    source, captions = str(run), ["a red circle above a blue square", "two green crosses"]
    end = command("sample", source, *captions, "--out", "drawn", "--seed", "3", "--steps", "2")
    assert end.code == 0
    files = [Path(line) for line in end.out.splitlines()]
    assert [file.name for file in files] == ["00-a-red-circle-above-a-blue-square.png", "01-two-green-crosses.png"]
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
    newest = str(run / "checkpoints/000004")
    command("sample", newest, *captions, "--out", "again", "--seed", "3", "--steps", "2")
    command("sample", f"{newest}/model.safetensors", *captions, "--out", "other", "--seed", "4", "--steps", "2")
    for file in files:
        again, other, first = (
            Image.open(folder / file.name).tobytes() for folder in (Path("again"), Path("other"), file.parent)
        )
        assert again == first != other
    alone = command("sample", "--like", str(files[1]), "--out", "alone").out.strip()
    assert Image.open(alone).tobytes() == Image.open(files[1]).tobytes()


def test_a_folder_that_cannot_be_written_is_one_line(run):
    end = command("sample", str(run), "a red circle", "--out", "reward.py", "--steps", "1")
    assert end.code == 1
    assert end.err == "grpaint: reward.py: File exists; fix that, or name another place.\n"


def test_sample_refuses_an_unknown_word(run):
    end = command("sample", str(run), "a red circel")
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert 'Did you mean "circle"?' in end.err


def test_evaluating_a_run_gives_its_last_evaluation(run):
    end = command("evaluate", str(run), "--json", "--trust")
    last = tiny_runs.lines(run / "evaluations.jsonl")[-1]
    assert json.loads(end.out) == {key: value for key, value in last.items() if key != "iteration"}
    table = command("evaluate", str(run / "checkpoints/000004"))
    assert table.code == 0
    assert "strict" in table.out


def test_a_run_can_be_named_without_its_folder(run):
    os.chdir(run.parent.parent)
    one = command("evaluate", "one", "--json", sets=["evaluate.prompts=1"])
    assert json.loads(one.out)["prompts"] == 1
    assert len(json.loads(one.out)["strict_by_prompt"]) == 1


def test_a_lone_weight_file_is_judged_by_the_recipe_of_its_world(run):
    weights = Path("weights.safetensors")
    weights.write_bytes((run / "checkpoints/000004/model.safetensors").read_bytes())
    end = command("evaluate", str(weights), "--json", sets=["evaluate.prompts=2", "evaluate.probe=2", "precision=fp32"])
    assert json.loads(end.out)["prompts"] == 2


def test_a_run_without_a_checkpoint_is_refused():
    Path("runs/new").mkdir(parents=True)
    Path("runs/new/run.toml").write_text("")
    end = command("evaluate", "new")
    assert end.code == 2
    assert end.err == "grpaint: runs/new: this run has saved no checkpoint yet.\n"


@pytest.mark.parametrize("words", [["train"], ["sft"]])
def test_an_existing_name_is_refused_and_left_alone(words):
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/note").write_text("mine")
    end = command(*words, "--name", "mine")
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert "--resume" in end.err
    assert "--name" in end.err
    assert [file.name for file in Path("runs/mine").iterdir()] == ["note"]


def test_a_reward_in_ten_lines():
    Path("reddish.py").write_text(
        'def reddish(images, prompts):\n    """How red an image is."""\n    return images[:, 0].mean((1, 2))\n'
    )
    end = command(
        "train",
        "flow-grpo-fast",
        "--name",
        "red",
        sets=[*TINY, "rewards.red.kind=reddish.py:reddish", "train.iterations=1"],
    )
    assert end.code == 0
    (line,) = tiny_runs.lines(Path("runs/red/metrics.jsonl"))
    assert line["reward/red"] == pytest.approx(0.5)
    assert {"reward/checker", "reward/red/std"} <= line.keys()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/tmp/run", "..", ".hidden"])
def test_a_name_that_leaves_runs_is_refused(name, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    end = command("train", "flow-grpo-fast", "--name", name, sets=TINY)
    assert end.code == 2
    assert name in end.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_needs_no_name(run):
    assert command("train", "scenes/flow-grpo-fast", sets=[*TINY, tiny_runs.REWARD, "train.iterations=1"]).code == 0
    assert [path.name for path in Path("runs").iterdir()] == ["flow-grpo-fast"]
    assert flags("a=1", "b=2") == ["--set", "a=1", "--set", "b=2"]


def test_the_table_of_a_run_fits_a_terminal():
    line = {
        "prompts": 320,
        "steps": 20,
        "iteration": 10_000,
        "strict": 1.0,
        "strict_interval": [0.99, 1.0],
        "soft": 1.0,
    }
    line |= {"background": 0.0042, "patch_energy": 1e-12, "denoising_loss": 0.04}
    console = Console(width=80, file=io.StringIO())
    console.print(before_after_table(line | {"base_guided": line | {"guidance": 1.5}}, line, (0.5, [0.41, 0.59])))
    output = console.file.getvalue()
    assert "…" not in output
    for word in ("at guidance 1.5", "100.0% [99.0, 100.0]", "+50.0 [+41.0, +59.0]", "x 1.00", "denoising"):
        assert word in output


def test_a_run_judged_by_its_loss_alone_shows_it_once():
    line = {"prompts": 20, "steps": 3, "iteration": 4, "score": "denoising_loss", "denoising_loss": 1.115}
    console = Console(width=80, file=io.StringIO())
    console.print(before_after_table(line, line, None))
    output = console.file.getvalue()
    assert output.count("denoising") == 1
    assert output.count("1.115") == 2
    assert "95%" not in output


def test_run_folders_lie_below_runs_dir(tmp_path):
    with tiny_runs.folder(tmp_path):
        sets = [*TINY, tiny_runs.REWARD, "train.iterations=1", "evaluate.pictures=0"]
        assert command("train", "flow-grpo-fast", "--name", "it", "--runs", "far/away", sets=sets).code == 0
        assert Path("far/away/it/run.toml").is_file()
        assert not Path("runs").exists()
        again = command("train", "--name", "it", "--runs", "far/away", "--resume")
        assert "has finished its 1 iterations" in again.out
        end = command("train", "flow-grpo-fast", "--name", "", sets=sets)
        assert (end.code, '--name "": the name of a folder under runs' in end.err) == (2, True)


@pytest.mark.parametrize(("given", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)], ids=str)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(given, spins):
    program = (
        "import os\nfrom grpaint.cli import main\n"
        "try: main()\nexcept SystemExit: print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(
        [sys.executable, "-c", program, "list"], capture_output=True, text=True, check=True, env=environment | given
    )
    assert done.stdout.splitlines()[-1] == str(spins)


@pytest.mark.parametrize(
    "words", [["train"], ["sft"], ["show"], ["plan"], ["doctor"], ["data", "prompts"]], ids=" ".join
)
def test_an_empty_name_is_no_recipe(words):
    end = command(*words, "")
    assert end.code == 2
    assert 'recipe ""' in end.err or "--name" in end.err


@pytest.mark.parametrize(
    "words",
    [
        "data draw --out new --count",
        "data draw --out new --held-out",
        "data captions . --out c --draws",
        "data prompts --prompts",
    ],
)
def test_counts_without_end_are_refused(words):
    end = command(*words.split(), "1" + "0" * 30)
    assert end.code == 2
    assert "Invalid value for" in end.err
    assert not Path("new").exists()


def test_a_warning_that_quotes_foreign_text_is_one_printable_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, "train.iterations=1"]).code == 0
    run = (tmp_path / "runs/it").rename(tmp_path / "runs/\x1b]0;title\x07")
    (run / "run.json").write_text("{")
    end = command("evaluate", str(run))
    assert end.code == 0
    assert r"runs/\x1b]0;title\x07/run.json:1: not JSON" in end.err
    assert "\x1b" not in end.err
