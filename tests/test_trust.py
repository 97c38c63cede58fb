"""What a file brings is data: its settings start nothing, unless the user trusts the file or has typed the same."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import tomli_w
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import tiny_runs
from grpaint.storage.files import read_weights, write_weights
from grpaint.storage.reading import read_toml
from tiny_runs import TINY, command

pytestmark = pytest.mark.usefixtures("small_network")

EVIL = """
from pathlib import Path
Path("ran").touch()
from grpaint.backends.scenes import Scenes
from grpaint.core.step import Ode
from grpaint.scenes.world import SceneData
def score(images, prompts):
    return images.mean((1, 2, 3))
def tagger(images):
    return [{"a": 1.0}] * len(images)
"""
SMALL = ["evaluate.prompts=4", "evaluate.probe=2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_network):
    """A finished run of packaged pieces, and a picture that it drew."""
    with tiny_runs.folder(tmp_path_factory.mktemp("made")) as here:
        assert command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, "train.iterations=1"]).code == 0
        drawn = command("sample", "it", "a red circle", "--out", "drawn")
        assert drawn.code == 0, drawn.err
    return here


@pytest.fixture(autouse=True)
def here(made, tmp_path, monkeypatch):
    """A folder with the run, the picture, and code that leaves a file ``ran`` when it is imported."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    shutil.copy(next((made / "drawn").glob("*.png")), tmp_path / "drawn.png")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path


def change(**tables):
    """Change tables of the run's run.toml."""
    file = Path("runs/it/run.toml")
    settings = read_toml(file)
    for name, table in tables.items():
        settings[name] = {**settings.get(name, {}), **table}
    file.write_text(tomli_w.dumps(settings))


def picture(**facts):
    """A picture with other facts than it was drawn with."""
    with Image.open("drawn.png") as drawn:
        record = json.loads(drawn.info["grpaint"])
        info = PngInfo()
        info.add_text("grpaint", json.dumps({**record, **facts}))
        drawn.save("given.png", pnginfo=info)
    return "given.png"


def exported(**tables):
    """A weight file whose header says how to draw with it."""
    tensors, header = read_weights(Path("runs/it/checkpoints/000001"))
    recipe = {"model": {"kind": "scenes"}, "evaluate": {"steps": 2}, **tables}
    write_weights(Path("given.safetensors"), tensors, {**header, "grpaint": json.dumps({"recipe": recipe})})
    return "given.safetensors"


def refused(end, *words):
    """One line with these words and the way out, and no code has run."""
    assert (end.code, end.err.count("\n"), Path("ran").exists()) == (2, 1, False), end
    for word in words:
        assert word in end.err, end.err


def ran_code(end):
    assert (end.code, Path("ran").exists()) == (0, True), end


CODE = ["evil.py:Ode", "evil:Ode", "./evil.py:Ode", "os:getcwd"]


@pytest.mark.parametrize("kind", CODE)
def test_a_picture_names_no_code(kind):
    refused(command("sample", "--like", picture(sampler={"kind": kind})), "given.png", kind, "--trust")


@pytest.mark.parametrize(
    ("sampler", "word"),
    [
        ({"kind": "ode", 'kind="evil.py:Ode" #': 1}, "no such setting"),
        ({"kind": "ode", "kind ": "evil.py:Ode"}, "no such setting"),
        ({"kind": "ode", "eta.kind": "evil.py:Ode"}, "no such setting"),
        ({"kind": ["evil.py:Ode"]}, "sampler.kind"),
        ({"kind": {"kind": "evil.py:Ode"}}, "sampler.kind"),
        ({"kind": "evil.py\uff1aOde"}, "no such sampler"),
        ({"kind": "evil.py\u2236Ode"}, "no such sampler"),
        ([{"kind": "evil.py:Ode"}], "must be a table"),
        ("evil.py:Ode", "must be a table"),
    ],
)
def test_keys_and_values_of_a_picture_are_no_assignments(sampler, word):
    refused(command("sample", "--like", picture(sampler=sampler)), "given.png", word)


@pytest.mark.parametrize(
    "facts",
    [
        {"seed": "0\n[x]"},
        {"seed": True},
        {"steps": "2, sampler.kind=evil.py:Ode"},
        {"prompt": ["a"]},
        {"source": {"kind": "evil.py:Ode"}},
        {"weights_sha256": 5},
        {"model": ["evil.py:Ode"]},
        {"evaluate": {"sampler": {"kind": "evil.py:Ode"}}},
        {"tuned_share": None},
    ],
    ids=str,
)
def test_a_picture_of_other_facts_than_ours_is_refused_in_one_line(facts):
    refused(command("sample", "--like", picture(**facts)), "given.png")


def test_a_picture_is_repeated_with_its_code_if_it_is_trusted_or_typed():
    given = picture(sampler={"kind": "evil.py:Ode"})
    ran_code(command("sample", "--like", given, "--trust"))
    Path("ran").unlink()
    ran_code(command("sample", "--like", given, "--set", "evaluate.sampler.kind=evil.py:Ode"))


def test_a_pipe_is_no_picture_and_is_not_waited_for():
    os.mkfifo("pipe.png")
    refused(command("sample", "it", "--like", "pipe.png"), "pipe.png", "no regular file")


FOREIGN = [
    {"model": {"kind": "evil.py:Scenes"}},
    {"model": {"kind": "evil:Scenes"}},
    {"evaluate": {"sampler": {"kind": "evil.py:Ode"}}},
    {"evaluate": {"sampler": {"kind": "cps", "eta": {"kind": "evil.py:Ode"}}}},
    {"evaluate": {"guided": [{"kind": "evil.py:Ode"}]}},
    {"model": {"kind": "diffusers", "base": ".", "family": "evil.py:Ode"}},
    {"model": {"kind": "scenes", "family": "evil.py:Ode"}},
    {"model": {"kind": "scenes", 'start="x" #': "evil.py:Ode"}},
    {"model": {"kind": "scenes", "lora": [{"kind": "evil.py:Ode"}]}},
]


@pytest.mark.parametrize("tables", FOREIGN, ids=str)
def test_the_header_of_a_weight_file_names_no_code(tables):
    for verb in ("sample", "export", "evaluate"):
        refused(command(verb, exported(**tables), *(["a red circle"] if verb == "sample" else [])))


def test_the_header_of_a_weight_file_draws():
    assert command("sample", exported(), "a red circle").code == 0


@pytest.mark.parametrize("source", ["runs/it", "runs/it/checkpoints/000001", "runs/it/deeper/still/w.safetensors"])
@pytest.mark.parametrize("tables", FOREIGN[:2], ids=str)
def test_a_run_toml_beside_or_above_the_weights_names_no_code(tables, source):
    Path("runs/it/deeper/still").mkdir(parents=True)
    shutil.copy("runs/it/checkpoints/000001/model.safetensors", "runs/it/deeper/still/w.safetensors")
    change(**tables)
    for words in (["sample", source, "a red circle"], ["export", source], ["evaluate", source]):
        refused(command(*words), "runs/it/run.toml", tables["model"]["kind"], "--trust")
    ran_code(command("sample", source, "a red circle", "--trust"))


OTHER_TABLES = {
    "rewards": {"x": {"kind": "evil.py:score"}},
    "advantage": {"kind": "evil.py:Ode"},
    "objective": {"kind": "evil.py:Ode"},
    "loggers": {"x": {"kind": "evil.py:Ode"}},
    "data": {"kind": "evil.py:SceneData"},
    "measure": {"rewards": {"x": {"kind": "evil.py:score"}}},
}


def test_drawing_takes_only_the_tables_that_it_needs():
    change(**OTHER_TABLES)
    for words in (["sample", "it", "a red circle"], ["sample", "--like", "drawn.png"]):
        assert (command(*words).code, Path("ran").exists()) == (0, False)
    assert "the built-in model is its own file" in command("export", "it").err
    assert not Path("ran").exists()


REWARDS = {
    "evil.py:score": {"kind": "evil.py:score"},
    "tagger": {"kind": "tag-recall", "tagger": "evil.py:tagger"},
    "worker": {"kind": "worker", "reward": "evil.py:score"},
    "program": {"kind": "ocr", "python": "./evil.py"},
    "remote": {"kind": "remote", "urls": ["http://127.0.0.1:9"], "token_env": "HOME"},
    "score": {"kind": "vlm-score", "url": "http://127.0.0.1:9/v1", "model": "m", "readout": {"question": "{prompt}"}},
    "judge": {"kind": "vlm-judge", "url": "http://127.0.0.1:9/v1", "model": "m", "token_env": "HOME"},
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("place", ["rewards", "measure"])
def test_evaluate_leaves_rewards_of_a_run_out_that_start_something(name, place, monkeypatch):
    monkeypatch.setattr("grpaint.rewards.elsewhere.worker.Process", None)
    monkeypatch.setattr("grpaint.rewards.elsewhere.remote.Question", None)
    monkeypatch.setattr("grpaint.rewards.chat.Question", None)
    reward = {"x": REWARDS[name]}
    change(**({"rewards": reward} if place == "rewards" else {"measure": {"rewards": reward}}))
    words = ["evaluate", "it", "--json", *(["--out", "page", "--few"] if place == "measure" else [])]
    end = command(*words, sets=SMALL)
    key = "rewards.x" if place == "rewards" else "measure.rewards.x"
    left_out = [line for line in end.err.splitlines() if "left out" in line]
    assert (end.code, Path("ran").exists(), len(left_out)) == (0, False, 1), end
    assert f"runs/it/run.toml: {key} is left out: " in left_out[0]
    assert "--trust" in left_out[0]
    assert "reward/checker" in end.out
    assert "reward/x" not in end.out


@pytest.mark.parametrize(
    "rewards",
    [
        {"x": {"kind": ["evil.py:score"]}},
        {"x": "evil.py:score"},
        {"x": [{"kind": "evil.py:score"}]},
        {'x={kind="evil.py:score"} #': {"kind": "jpeg"}},
        {"x.kind": {"kind": "jpeg"}},
        {"x": {"kind": "jpeg", "floor": {"kind": "evil.py:score"}}},
        {"x": {"kind": "\u0435vil.py:score\u200b"}},
    ],
    ids=str,
)
def test_rewards_of_a_run_that_are_none_are_refused_or_left_out(rewards):
    change(rewards=rewards)
    end = command("evaluate", "it", sets=SMALL)
    assert (end.err.count("\n"), Path("ran").exists(), "grpaint: " in end.err or "left out" in end.err) == (
        1,
        False,
        True,
    )


def test_evaluate_runs_the_rewards_of_a_run_that_is_trusted_and_those_that_are_typed():
    end = command("evaluate", "it", "--json", sets=[*SMALL, "rewards.y.kind=evil.py:score"])
    ran_code(end)
    assert "reward/y" in json.loads(end.out)
    Path("ran").unlink()
    change(rewards={"x": {"kind": "evil.py:score"}})
    end = command("evaluate", "it", "--json", "--trust", sets=SMALL)
    ran_code(end)
    assert end.err == ""
    assert "reward/x" in json.loads(end.out)


@pytest.mark.parametrize("table", ["data", "watch", "evaluate"])
def test_evaluate_refuses_what_it_cannot_leave_out(table):
    tables = {"data": {"kind": "evil.py:SceneData"}, "evaluate": {"sampler": {"kind": "evil.py:Ode"}}}
    change(**{table: tables.get(table, {"evil": 1})})
    refused(command("evaluate", "it", sets=SMALL), table, "" if table == "watch" else "--trust")


@pytest.mark.parametrize("verb", ["show", "plan"])
@pytest.mark.parametrize("table", OTHER_TABLES)
def test_show_and_plan_never_import_what_a_run_folder_names(verb, table):
    change(**{table: OTHER_TABLES[table]})
    refused(command(verb, "runs/it/run.toml"), "run.toml", "evil.py", "--trust")
    Path("link.toml").symlink_to("runs/it/run.toml")
    refused(command(verb, "link.toml"), "evil.py", "--trust")


@pytest.mark.parametrize(
    "words", [("fetch", "{}", "--to", "files"), ("data", "scan", "{}"), ("data", "prompts", "{}"), ("plan", "{}")]
)
def test_other_commands_that_read_a_recipe_never_import_what_a_run_folder_names(words):
    change(rewards={"x": {"kind": "evil.py:score"}})
    words = [word.format("runs/it/run.toml") for word in words]
    refused(command(*words), "run.toml", "rewards.x", "evil.py:score", "--trust")
    command(*words, "--trust")
    assert Path("ran").exists()


def test_prompts_are_not_scanned_with_a_reward_of_a_run_that_starts_something():
    change(rewards={"x": REWARDS["worker"]})
    refused(command("data", "prompts", "runs/it/run.toml"), "rewards.x", "start a program", "--trust")


def test_a_supervised_recipe_of_a_run_is_searched_for_overlaps_only_if_it_names_no_code():
    file = Path("runs/it/run.toml")
    model = read_toml(file)["model"]
    file.write_text(tomli_w.dumps({"stage": "sft", "model": model, "data": {"kind": "evil.py:SceneData"}}))
    refused(command("data", "prompts", "flow-grpo-fast", "--captions", str(file)), "data.kind", "--trust")


def test_show_of_a_trusted_run_or_of_the_users_own_recipe_imports_its_code():
    change(rewards={"x": {"kind": "evil.py:score"}})
    ran_code(command("show", "runs/it/run.toml", "--trust"))
    Path("ran").unlink()
    shutil.copy("runs/it/run.toml", "mine.toml")
    ran_code(command("show", "mine.toml"))


def test_plan_times_no_reward_of_a_run_that_starts_something():
    change(rewards={"x": REWARDS["worker"]})
    refused(command("plan", "runs/it/run.toml", "--calibrate"), "rewards.x", "--trust")


def test_doctor_leaves_the_rewards_of_a_run_out(monkeypatch):
    monkeypatch.setattr("grpaint.commands.doctor.command.examine", lambda *_, **__: iter(()))
    change(rewards={"x": {"kind": "evil.py:score"}})
    end = command("doctor", "runs/it/run.toml")
    assert (end.code, end.err.count("\n"), Path("ran").exists()) == (0, 1, False), end
    assert 'rewards.x is left out: would run "evil.py:score"; --trust takes it.' in end.err
    ran_code(command("doctor", "runs/it/run.toml", "--trust"))
    Path("ran").unlink()
    change(objective={"kind": "evil.py:Ode"})
    refused_lines = command("doctor", "runs/it/run.toml")
    assert (refused_lines.code, Path("ran").exists()) == (2, False)


def test_training_a_typed_recipe_and_resuming_need_no_flag():
    sets = [*TINY, "train.iterations=1", "rewards.x.kind=evil.py:score"]
    ran_code(command("train", "flow-grpo-fast", "--name", "own", sets=sets))
    Path("ran").unlink()
    ran_code(command("train", "--name", "own", "--resume", sets=["train.iterations=2"]))


def test_a_table_of_no_recipe_is_refused():
    change(startup={"kind": "evil.py:Ode"})
    refused(command("sample", "it", "a red circle"), "startup", "no such setting")
