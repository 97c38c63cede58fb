"""A run that was stopped, however it was stopped, and resumed equals the one that was not, bit for bit."""

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny_runs
from grpaint.recipe.pieces import stateful
from grpaint.storage.files import read_weights, unflatten
from grpaint.storage.reading import read_toml
from tiny_pipelines import save
from tiny_runs import REWARD, TINY, TINY_SFT, command, copy_cut_after, lines, process, status

pytestmark = pytest.mark.usefixtures("small_bases")

# pieces with a state of their own, two updates an iteration, a schedule, and decay: all of it must come back
SETS = [
    *TINY,
    REWARD,
    "train.iterations=8",
    "checkpoint.every=1",
    "evaluate.every=3",
    "train.updates=2",
    "train.warmup=3",
    "train.schedule=cosine",
    "train.optimizer.weight_decay=0.1",
    'data.kinds=["single"]',
    "train.prompts=8",
    "advantage={kind='history',buffer=6,min_count=5}",
    'objective.penalty={kind="adaptive-kl",target=1e-4}',
]


def _reference(base, stage, *sets):
    with tiny_runs.folder(base) as here:
        assert command(*RECIPE[stage], "--name", "it", sets=sets).code == 0
    return here / "runs/it"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing stopped."""
    return _reference(tmp_path_factory.mktemp("straight"), "train", *SETS)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A shorter one, with checkpoints at 2 and 4."""
    return _reference(tmp_path_factory.mktemp("short"), "train", *TINY, REWARD)


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


IT = Path("runs/it")
RECIPE = {"train": ("train", "flow-grpo-fast"), "sft": ("sft",)}


def _resumed(like, *words, stage="train"):
    end = command(stage, *words, "--name", "it", "--resume")
    assert (end.code, tiny_runs.without_caption_warnings(end.err)) == (0, "")
    tiny_runs.same(like, IT)
    assert status(IT)["status"] == "finished"
    return end


def _kill_when(running, lines_wanted, more):
    """Kill -9 the process ``more`` seconds after metrics.jsonl has so many lines, or leave it if it was faster."""
    metrics = IT / "metrics.jsonl"
    while running.poll() is None and not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines_wanted):
        time.sleep(0.005)
    time.sleep(more)
    running.kill()
    running.communicate()


def test_kill_9_at_random_moments_changes_nothing(straight):
    draw = random.Random()
    words = [*RECIPE["train"], "--name", "it"]
    for line_count in (0, 1, 4):  # 0: in the first evaluation or the first iteration
        began = process(*words, sets=SETS if "--resume" not in words else [])
        _kill_when(began, line_count, draw.uniform(0, 0.5))
        assert status(IT)["status"] in ("running", "finished")
        words = ["train", "--name", "it", "--resume"]
    _resumed(straight)


def test_a_resumed_sft_run_is_the_same(tmp_path_factory):
    sets = [*TINY_SFT, "train.iterations=4", "checkpoint.every=1", "checkpoint.keep=4"]
    straight = _reference(tmp_path_factory.mktemp("sft"), "sft", *sets)
    copy_cut_after(3, straight, IT)
    _resumed(straight, stage="sft")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_iteration_saves_and_stops(name, short):
    Path("fault").write_text(name)  # sent from within the third iteration
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, REWARD])
    assert end.code == 128 + getattr(signal, name)
    assert end.err == f"grpaint: stopped by {name} after saving; continue with --resume.\n"
    assert (status(IT)["status"], status(IT)["reason"]) == ("interrupted", name)
    assert status(IT)["end"]
    assert sorted(path.name for path in IT.glob("checkpoints/*")) == ["000002", "000003"]
    assert [line["iteration"] for line in lines(IT / "metrics.jsonl")] == [1, 2, 3]
    Path("fault").unlink()
    _resumed(short)
    assert status(IT)["reason"] is None


def test_a_second_signal_stops_at_once(short):
    Path("fault").write_text("SIGTERM SIGINT")
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, REWARD])
    assert end.code == 130
    assert "Traceback" not in end.err
    assert status(IT)["status"] == "interrupted"
    assert [path.name for path in IT.glob("checkpoints/*")] == ["000002"]
    Path("fault").unlink()
    _resumed(short)


def _under_way(*sets):
    running = process("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, REWARD, *sets])
    while running.poll() is None and not ((IT / "run.json").is_file() and status(IT)["status"] == "running"):
        time.sleep(0.005)
    return running


def test_a_second_signal_is_answered_and_stops_at_once():
    running = _under_way("evaluate.prompts=2000", "evaluate.steps=50")  # the first evaluation takes long
    running.send_signal(signal.SIGINT)
    assert running.stderr.readline().startswith("grpaint: stopping after what is under way")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 130
    assert errors == "grpaint: stopped at once; what was saved before stays.\n"


def test_a_process_stopped_from_outside_as_soon_as_it_runs(short):
    running = _under_way()
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 143
    first, last = errors.splitlines()
    assert first.startswith("grpaint: stopping after what is under way")
    assert last == "grpaint: stopped by SIGTERM after saving; continue with --resume."
    assert status(IT)["status"] == "interrupted"
    assert [path.name for path in IT.glob("checkpoints/*")] == ["000001"]
    _resumed(short)


OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # whose end it is told


def test_a_run_whose_terminal_is_closed_saves(short):
    terminal, side = pty.openpty()
    program = OWN_TERMINAL + tiny_runs.SMALL_MAIN.format(folder=str(Path(__file__).parent))
    words = ["train", "flow-grpo-fast", "--name", "it", *tiny_runs.flags(*TINY, REWARD)]
    running = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdin=side, stdout=side, stderr=side, start_new_session=True
    )
    os.close(side)
    while running.poll() is None and not ((IT / "run.json").is_file() and status(IT)["status"] == "running"):
        time.sleep(0.005)
    os.close(terminal)
    assert running.wait(600) == 129
    assert (status(IT)["status"], status(IT)["reason"]) == ("interrupted", "SIGHUP")
    assert [path.name for path in IT.glob("checkpoints/*")] == ["000001"]
    _resumed(short)


def test_under_nohup_the_end_of_the_terminal_stops_nothing(short):
    Path("fault").write_text("SIGHUP")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, REWARD]).code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    tiny_runs.same(short, IT)


def test_handlers_are_put_back(short):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    Path("fault").write_text("raise")
    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, REWARD]).code == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_without_a_checkpoint_starts_again(short):
    copy_cut_after(0, short, IT)
    _resumed(short)


def test_half_written_checkpoints_are_no_checkpoints(short):
    copy_cut_after(2, short, IT)
    aside = IT / "checkpoints/.000004.part"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    (IT / ".run.json.part").write_text("{")
    _resumed(short)
    assert not aside.exists()
    assert sorted(path.name for path in IT.glob("checkpoints/*")) == ["000002", "000004"]


def test_a_leftover_temporary_folder_does_not_block_a_new_one(short):
    Path("runs/.it.part").mkdir(parents=True)
    Path("runs/.it.part/run.toml").write_text("half = ")
    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, REWARD]).code == 0
    tiny_runs.same(short, IT)
    assert [path.name for path in Path("runs").iterdir()] == ["it"]


def test_lines_past_the_last_checkpoint_are_cut(short):
    copy_cut_after(2, short, IT)
    assert [line["iteration"] for line in lines(IT / "evaluations.jsonl")] == [0, 2, 4]
    end = command("train", "--name", "it", "--resume", sets=["threads=2"])  # refused: nothing is touched
    assert end.code == 2
    assert [line["iteration"] for line in lines(IT / "evaluations.jsonl")] == [0, 2, 4]
    _resumed(short)


def test_a_checkpoint_that_was_damaged_is_one_line(short):
    copy_cut_after(2, short, IT)
    file = IT / "checkpoints/000002/training.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    end = command("train", "--name", "it", "--resume")
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert "training.safetensors" in end.err
    assert (IT / "metrics.jsonl").is_file()


def test_resuming_a_finished_run_says_that_it_is_finished(short):
    shutil.copytree(short, IT)
    before = {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()}
    end = command("train", "--name", "it", "--resume")
    assert (end.code, end.err) == (0, "")
    assert "finished its 4 iterations" in end.out
    assert {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()} == before


def test_equal_settings_may_be_repeated(short):
    copy_cut_after(2, short, IT)
    _resumed(short, "scenes/flow-grpo-fast", "--set", "train.iterations=4", "--set", "plan.sampler.eta=0.7")
    for words in (["flow-grpo-fast"], [str(short / "run.toml")], ["--set", "train.prompts=3"]):
        end = command("train", *words, "--name", "it", "--resume")
        assert (end.code, end.err) == (0, "")
        assert "finished" in end.out


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("train.seed=1", "train.seed = 1"),
        ("train.iterations=3", "train.iterations = 3"),
        ("train.evaluations=10", "train.evaluations = 10"),
        ("plan.sampler.eta=0.5", "plan.sampler.eta = 0.5"),
        ("plan.sampler.kind=flow-sde", "plan.sampler.kind = 'flow-sde'"),
        ("evaluate.guided=[2]", "evaluate.guided"),
        ("objective.penalty.kind=step-kl", "objective.penalty"),
    ],
)
def test_a_differing_setting_is_refused_by_key(setting, key, short):
    shutil.copytree(short, IT)
    before = (IT / "run.toml").read_bytes()
    for words in ([], ["flow-grpo-fast"]):
        end = command("train", *words, "--name", "it", "--resume", sets=[setting])
        assert end.code == 2
        assert end.err.startswith(f"grpaint: {key}")
        assert end.err.count("\n") == 1
        assert "--name" in end.err
    assert (IT / "run.toml").read_bytes() == before


def test_another_recipe_is_refused_by_key(short):
    shutil.copytree(short, IT)
    settings = (short / "run.toml").read_text().replace("learning_rate = 0.0001", "learning_rate = 0.0002")
    Path("other.toml").write_text(settings)
    end = command("train", "other.toml", "--name", "it", "--resume")
    assert end.code == 2
    assert end.err.startswith("grpaint: train.learning_rate = 0.0002")
    end = command("sft", "--name", "it", "--resume")
    assert end.code == 2
    assert "grpaint train" in end.err


def test_more_iterations_continue_from_the_end(short):
    shutil.copytree(short, IT)
    end = command("train", "--name", "it", "--resume", sets=["train.iterations=6"])
    assert (end.code, end.err) == (0, "")
    assert read_toml(IT / "run.toml")["train"]["iterations"] == 6
    metrics = tiny_runs.timeless(IT / "metrics.jsonl")
    assert [line["iteration"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[:4] == tiny_runs.timeless(short / "metrics.jsonl")
    assert [line["iteration"] for line in lines(IT / "evaluations.jsonl")] == [0, 2, 4, 6]
    assert status(IT)["iterations"] == 6
    for words in ([], ["flow-grpo-fast"], ["--set", "train.iterations=6"]):
        assert "finished its 6" in command("train", *words, "--name", "it", "--resume").out
    straight = [item for item in (*TINY, REWARD) if not item.startswith("train.iterations")]
    assert command("train", "flow-grpo-fast", "--name", "long", sets=[*straight, "train.iterations=6"]).code == 0
    tiny_runs.same(IT, Path("runs/long"))


def test_a_setting_newer_than_the_run_has_its_default(short):
    shutil.copytree(short, IT)
    settings = (IT / "run.toml").read_text()
    assert "\nevaluations = 0\n" in settings
    (IT / "run.toml").write_text(settings.replace("\nevaluations = 0\n", "\n"))
    end = command("train", "--name", "it", "--resume", sets=["train.evaluations=9"])
    assert end.code == 2
    assert end.err.startswith("grpaint: train.evaluations = 9: the run runs/it has 0;")


def test_a_run_that_used_up_its_evaluations_continues_with_more(straight):
    each = lines(straight / "metrics.jsonl")[0]["cost/model_evaluations"]
    end = command("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, f"train.evaluations={2 * each}"])
    assert "     2/2 " in end.out
    assert "finished its 2 iterations" in command("train", "--name", "it", "--resume").out
    end = command("train", "--name", "it", "--resume", sets=[f"train.evaluations={4 * each}"])
    assert (end.code, end.err) == (0, "")
    assert "     4/4 " in end.out
    assert status(IT)["iterations"] == 4


def test_there_must_be_a_run_to_resume():
    end = command("train", "--name", "it", "--resume")
    assert end.code == 2
    assert end.err == "grpaint: runs/it: no run to resume there (run.toml not found).\n"
    assert not Path("runs").exists()


def test_the_state_of_pieces_is_in_the_checkpoint(straight):
    state = json.loads((straight / "checkpoints/000008/state.json").read_text())
    assert state["iteration"] == 8
    assert set(state["pieces"]) == {"advantage", "objective.penalty"}
    assert state["pieces"]["objective.penalty"]["beta"] != 0.01
    remembered = state["pieces"]["advantage"]
    assert max(map(len, remembered.values())) == 6  # a full buffer: captions came up more than once
    assert {"seed", "iteration"} <= state["random"].keys()


LAGGING = [
    *TINY,
    REWARD,
    'plan.window={kind="closed"}',
    'plan.start={kind="independent"}',
    "plan.weights=behaviour",
    "behaviour={slope=0.3,most=0.6}",
    'objective={kind="epg",form="pepg"}',
    "train.updates=2",
    "checkpoint.every=1",
    "checkpoint.keep=4",
]


@pytest.mark.parametrize("lora", [False, True])
def test_behaviour_weights_are_resumed(lora, tmp_path_factory):
    lora_sets = [item for item in LAGGING if item != "model.start=random"]  # whose last layer hides the adapters
    sets = [*lora_sets, "model.lora.rank=2"] if lora else LAGGING
    run = _reference(tmp_path_factory.mktemp("lagging"), "train", *sets)
    copy_cut_after(2, run, IT)
    _resumed(run)
    sets = unflatten(read_weights(IT / "checkpoints/000004/training.safetensors")[0])
    gaps = [(sets["behaviour"][name] - now).norm().item() for name, now in sets["current"].items()]
    assert max(gaps) > 0
    second = unflatten(read_weights(run / "checkpoints/000003/training.safetensors")[0])
    for name, now in sets["current"].items():  # the last blend, after iteration 3, kept 0.6
        expected = 0.6 * second["behaviour"][name] + 0.4 * now
        assert (sets["behaviour"][name] - expected).abs().max() <= 1e-6


COUNTING = """
from dataclasses import dataclass, field
from pathlib import Path

@dataclass
class Counting:
    share: float = 0.1
    seen: int = field(default=0, init=False)

    def __post_init__(self):
        with Path("built").open("a") as file:
            file.write("once ")

    def __call__(self, images, prompts):
        self.seen += 1
        return [self.share * ((row + self.seen) % 5) for row in range(len(images))]

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
"""


def test_a_reward_with_a_state_of_its_own_is_resumed(tmp_path_factory):
    sets = [*TINY, 'rewards={mine={kind="counting.py:Counting"}}']
    with tiny_runs.folder(tmp_path_factory.mktemp("counting")) as here:
        Path("counting.py").write_text(COUNTING)
        assert command("train", "flow-grpo-fast", "--name", "it", sets=sets).code == 0
    Path("counting.py").write_text(COUNTING)
    copy_cut_after(2, here / "runs/it", IT)
    _resumed(here / "runs/it")
    state = json.loads((IT / "checkpoints/000004/state.json").read_text())
    assert state["pieces"] == {"rewards.mine.reward": {"seen": 4}}
    assert Path("built").read_text() == "once "


def test_torch_modules_are_not_taken_for_pieces_with_state():
    import torch

    assert stateful({"scorer": torch.nn.Linear(1, 1)}) == {}


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    return save("sd15", tmp_path_factory.mktemp("sd15"))


def test_kill_9_changes_nothing_for_an_adapter_on_a_pipeline(tmp_path_factory, pipeline_folder):
    sets = [
        *(item for item in SETS if not item.startswith(("model.", "plan."))),
        f'model={{kind="diffusers",base="{pipeline_folder}",height=32,width=32,guidance=2.0,lora={{rank=4}}}}',
        'plan={steps=4,sampler={kind="cps"},window={kind="random",size=2,high=1},start={kind="shared"}}',
        "train.group_size=2",
        "train.prompts=2",
        "train.iterations=3",
        "anchor.batch=4",
        "data.caption_dropout=0",
    ]
    straight = _reference(tmp_path_factory.mktemp("straight-pipeline"), "train", *sets)
    draw, words = random.Random(), [*RECIPE["train"], "--name", "it"]
    began = process(*words, sets=sets)
    _kill_when(began, 1, draw.uniform(0, 0.5))
    _resumed(straight)


def test_loss_scaling_is_resumed_with_the_rest(tmp_path_factory, pipeline_folder):
    sets = [
        *(item for item in SETS if not item.startswith(("model.", "plan.", "precision"))),
        f'model={{kind="diffusers",base="{pipeline_folder}",height=32,width=32,lora={{rank=4}}}}',
        'plan={steps=3,sampler={kind="cps"},window={kind="random",size=2,high=0},start={kind="shared"}}',
        "precision=fp16",
        "anchor.batch=4",
        "train.group_size=2",
        "train.prompts=2",
        "train.iterations=3",
    ]
    straight = _reference(tmp_path_factory.mktemp("straight-fp16"), "train", *sets)
    state = json.loads((straight / "checkpoints/000003/state.json").read_text())
    assert state["pieces"]["scaler"]["scale"] == 1024
    assert state["pieces"]["scaler"]["_growth_tracker"] == 6  # two updates an iteration, none of them skipped
    assert "train/nonfinite_updates" not in lines(straight / "metrics.jsonl")[0]
    copy_cut_after(2, straight, IT)
    _resumed(straight)
