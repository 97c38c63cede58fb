"""Prompt files, and the scan of what a base model can learn from them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import images.making as making
import tiny_runs
from grpaint.commands.prompt_scan import mark_dead_prompts, near_duplicate_prompts, overlaps
from grpaint.core.errors import ConfigError
from grpaint.images.prompts import PromptData, read_prompts
from grpaint.recipe.build import build
from grpaint.recipe.pieces import Data
from tiny_runs import TINY, command

LINES = [{"prompt": f"thing {n}", "level": n, "kind": "odd" if n % 2 else "even"} for n in range(30)]


def write(path, suffix):
    file = path / f"prompts{suffix}"
    if suffix == ".txt":
        file.write_text("\n\n".join(line["prompt"] for line in LINES) + "\n")
    elif suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(line) for line in LINES))
    else:
        file.write_text("prompt,level,kind\n" + "".join(f'"{x["prompt"]}",{x["level"]},{x["kind"]}\n' for x in LINES))
    return file


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, suffix):
    source = PromptData(str(write(tmp_path, suffix)), report_by="kind")
    training, judged = source.prompts(len(source.training), 0, 0), source.held_out(99, 0)
    assert {prompt.text for prompt in training + judged} == {line["prompt"] for line in LINES}
    assert len(training) + len(judged) == 30
    assert training != source.prompts(len(source.training), 1, 0)
    assert training == PromptData(source.train, report_by="kind").prompts(len(training), 0, 0)
    if suffix != ".txt":
        assert all(str(p.metadata["level"]) == p.text.split()[1] for p in training)
        assert {source.category(prompt) for prompt in training} == {"odd", "even"}


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_only_line_ends_end_a_line(tmp_path, suffix):
    texts = ["a cat\u2028sat", "a\u0085dog", "a\x0cbird"]
    rows = {
        ".txt": "\r\n".join(texts),
        ".jsonl": "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts),
        ".csv": ",prompt\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)),  # its first column has no name
    }
    file = tmp_path / f"a{suffix}"
    file.write_bytes(rows[suffix].encode())
    assert [prompt.text for prompt in read_prompts(file, "prompt")] == texts
    file.rename(file.with_suffix(suffix.upper()))
    assert [prompt.text for prompt in read_prompts(file.with_suffix(suffix.upper()), "prompt")] == texts


def test_old_line_ends_and_marks_of_joined_files_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\rtwo\r\n\ufeffthree".encode())
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.txt", "prompt")] == ["one", "two", "three"]


def test_public_benchmarks_are_held_out_prompts(tmp_path):
    """A line of GenEval 2's layout keeps its nested questions; a file a prompt becomes a line by the page's command."""
    questions = [["How many kites are there?", "two"], ["Is the hat wet?", "Yes"]]
    line = {"prompt": "two kites over a wet hat", "atom_count": 4, "vqa_list": questions}
    (tmp_path / "geneval2_data.jsonl").write_text(json.dumps(line) + "\n")
    folder = tmp_path / "dpg_bench" / "prompts"
    folder.mkdir(parents=True)
    (folder / "1.txt").write_text("A tall lamp,\r\nwhich leans.\n")
    (folder / "2.txt").write_text("An empty street.")
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    subprocess.run(["sh", "-c", page.split("one file of all: `")[1].split("`")[0]], cwd=tmp_path, check=True)
    train = str(write(tmp_path, ".txt"))
    source = PromptData(train, str(tmp_path / "geneval2_data.jsonl"), report_by="atom_count")
    (prompt,) = source.held_out(9, 0)
    assert (prompt.text, prompt.metadata["vqa_list"], source.category(prompt)) == (line["prompt"], questions, "4")
    texts = {" ".join(prompt.text.split()) for prompt in PromptData(train, str(tmp_path / "dpg.txt")).held_out(9, 0)}
    assert texts == {"A tall lamp, which leans.", "An empty street."}


BAD = {
    "a.txt: no prompt in it": ("a.txt", "\n"),
    'a.txt:3: "nan" is what programs write where there is no prompt': ("a.txt", "a\n\nnan\n"),
    'a.csv:3: no prompt in column "prompt"': ("a.csv", "prompt,b\na,c\nNone,d\n"),
    'a.jsonl:2: no prompt in column "prompt"': ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}'),
    "a.jsonl:1: not JSON": ("a.jsonl", "{"),
    "a.csv:3: not the 2 columns": ("a.csv", "prompt,x\na,1\nb,2,3\n"),
    "a.csv:2: not the 2 columns": ("a.csv", "prompt,x\na\n"),
    "a.csv:2: no": ("a.csv", "text,x\na,1\n"),
    "a.csv:1: two columns of one name": ("a.csv", "prompt,prompt\na,b\n"),
    "a.csv:2: not CSV": ("a.csv", 'prompt,x\n"a"b,1\n'),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_named_by_line(tmp_path, message):
    name, text = BAD[message]
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        read_prompts(tmp_path / name, "prompt")


def test_a_split_that_holds_out_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(ConfigError, match=r"of 1 prompts . are held out"):
        PromptData(str(tmp_path / "a.txt")).prepare(str)
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"data.train = .*must end in .txt, .jsonl, .csv"):
        build(Data, {"kind": "prompts", "train": str(tmp_path / "a.yaml")}, "data")


def test_references_are_read_from_their_column(tmp_path):
    (tmp_path / "a.png").write_bytes(making.png(7, (64, 48)))
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"p {n}", "reference": "a.png"}) for n in range(30)))
    source = PromptData(str(file), references=True, resolution=32)
    source.prepare(str)
    prompt = source.prompts(1, 0, 0)[0]
    assert prompt.reference.shape == (3, 32, 32)
    assert making.number_of(prompt.reference) == 7
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r'a.png: empty file; it is the reference of "p'):
        source.prepare(str)
    file.write_text("\n".join(json.dumps({"prompt": f"p {n}"}) for n in range(30)))
    with pytest.raises(ConfigError, match='names no image in column "reference"'):
        PromptData(str(file), references=True).prepare(str)


@pytest.mark.parametrize("name", ["../a.png", "link.png", "pipe.png", "up/a.png", "{tmp_path}/a.png"])
def test_a_reference_outside_the_folder_of_the_prompts_is_refused(tmp_path, name):
    (tmp_path / "a.png").write_bytes(making.png(7))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link.png").symlink_to("../a.png")
    (tmp_path / "set/up").symlink_to("..")
    os.mkfifo(tmp_path / "set/pipe.png")
    file = tmp_path / "set/p.jsonl"
    name = name.format(tmp_path=tmp_path)
    file.write_text("\n".join(json.dumps({"prompt": f"p {n}", "reference": name}) for n in range(30)))
    with pytest.raises(ConfigError, match=r'p.jsonl: the reference of "p .*": ".*only files in the folder'):
        PromptData(str(file), references=True, resolution=32).prepare(str)


def test_prompts_alone_are_refused_if_images_are_needed(tmp_path):
    file = write(tmp_path, ".txt")
    sets = ["data.kind=prompts", f"data.train={file}"]
    with tiny_runs.folder(tmp_path):
        for words in (["sft"], ["train", "scenes/diffusion-nft"]):
            end = command(*words, sets=sets)
            assert end.code == 2
            assert "trains on captioned images, and this data has prompts alone" in end.err


def test_kinds_of_dead_prompts_are_distinguished():
    def line(least, most):
        return {"prompt": "p", "mean": (least + most) / 2, "std": (most - least) / 2, "least": least, "most": most}

    lines = [line(0.2, 0.8), line(1, 1), line(0, 0), line(0.5, 0.5)]
    assert [verdict["dead"] for verdict in mark_dead_prompts(lines)] == ["", "all right", "all wrong", "flat"]
    assert [verdict["dead"] for verdict in mark_dead_prompts([line(1, 1)])] == ["flat"]


def test_overlap_goes_by_words():
    others = ["1girl, long_hair, smile, blue sky", "a dog"]
    shared = overlaps(["Blue sky, 1girl, smile, long hair", "a cat", "two dogs"], others)
    assert shared == [("Blue sky, 1girl, smile, long hair", others[0], 1.0)]
    assert overlaps(["completely new"], others) == []
    swapped = ["a red cross and a blue circle", "a blue cross and a red circle", "A red cross and a blue circle."]
    assert near_duplicate_prompts([*swapped, swapped[0]]) == [(swapped[2], swapped[0], 1.0)]
    one = "a photograph of two old dogs that sleep on a green sofa"
    assert [pair[0] for pair in near_duplicate_prompts([one, one.replace("green", "red")])] == [
        one.replace("green", "red")
    ]


DEAD = """
import torch

def score(images, prompts):
    known = [p.text.startswith("a red") for p in prompts]
    return torch.where(torch.tensor(known), 0.0, images.mean((1, 2, 3)) + torch.arange(len(images)) % 2)
"""


def test_a_scan_finds_the_dead_prompts_and_the_overlap(tmp_path):
    with tiny_runs.folder(tmp_path):
        Path("dead.py").write_text(DEAD)
        shapes = ("circle", "square", "cross", "triangle")
        train = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in shapes]
        Path("train.txt").write_text("\n".join(train))
        Path("judged.txt").write_text("a green cross\na blue cross\n")
        Path("sft.toml").write_text('stage = "sft"\n[model]\nkind = "scenes"\n[data]\nkind = "scenes"\n')
        with Path("sft.toml").open("a") as file:
            file.write("[objective]\n[train]\niterations = 1\nlearning_rate = 1e-3\n")
        sets = [*TINY, "data.kind=prompts", "data.train=train.txt", "data.held_out_path=judged.txt"]
        sets += ['rewards={dead={kind="dead.py:score"}}', "anchor=none"]
        end = command(
            "data", "prompts", "flow-grpo-fast", "--prompts", "8", "--captions", "sft.toml", "--json", sets=sets
        )
        assert end.code == 0, end.err
        report = json.loads(end.out)
        assert {line["prompt"] for line in report["prompts"] if line["dead"]} == {f"a red {shape}" for shape in shapes}
        assert {line["dead"] for line in report["prompts"]} == {"", "all wrong"}
        assert report["dead"] == 4
        assert [pair[:2] for pair in report["held_out_in_training"]] == [["a blue cross", "a blue cross"]]
        assert {pair[0] for pair in report["training_in_captions"]} == set(train)  # single things, all in scenes
        plain = command("data", "prompts", "flow-grpo-fast", "--prompts", "4", sets=sets).out
        assert "DEAD: all wrong" in plain
        assert "1 held-out prompts that training has, nearly" in plain
