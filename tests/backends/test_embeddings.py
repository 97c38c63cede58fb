"""Captions read once: files of embeddings, encoders that are let go, and captions that are cut."""

import gc
import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_runs
from grpaint.backends import embeddings
from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.backends.embeddings import EmbeddingCache
from grpaint.core import Ddim, FlowSde, Prompt
from grpaint.core.errors import RunError
from grpaint.core.runtime import Runtime
from grpaint.rollout import Plan, Whole, roll
from tiny_pipelines import FLOWS, PIPELINES, TOKENS, save, side
from tiny_runs import command, lines

TEXTS = ["a red cat", "two blue dogs", "a red cat", ""]
PROMPTS = [Prompt(text) for text in TEXTS]
FAMILIES = [
    *("sd15", "sdxl", "sd3", "flux-dev", "qwen-image", "z-image"),
    *("chroma", "flux2-dev", "flux2-klein-base", "krea2", "lumina2", "sana", "kolors", "hidream", "hunyuan-image"),
    "qwen-image-2.1",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(name, root) for name in FAMILIES}


def load(folder: Path, cache: Path | None = None, precision: Any = "fp32", **settings: Any) -> DiffusersPolicy:
    caching = {"embeddings": "cache", "cache": str(cache)} if cache else {}
    tokens = {"tokens": TOKENS[folder.name]} if folder.name in TOKENS else {}
    settings = {"height": side(folder.name), "width": side(folder.name), **tokens, **caching, **settings}
    return Diffusers(str(folder), **settings).load(Runtime("cpu", precision))


def encoders(policy: DiffusersPolicy) -> list[Any]:
    return [part for name, part in policy.pipe.components.items() if name.startswith("text_encoder")]


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Every text encoder that is lent to a pipeline."""
    seen: list[weakref.ref[Any]] = []
    plain = embeddings.EmbeddingCache._encode_and_write

    def watched(self: Any, texts: Any) -> Any:
        made = plain(self, texts)
        for parts in made:
            policy = self._encode.__self__
            seen.extend(weakref.ref(part) for part in encoders(policy) if part is not None)
            yield parts

    monkeypatch.setattr(embeddings.EmbeddingCache, "_encode_and_write", watched)
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_changes_no_bit_and_no_encoder_stays(
    folders: dict[str, Path], name: str, tmp_path: Path, opened: list[weakref.ref[Any]]
) -> None:
    plain, cold = load(folders[name]).encode(PROMPTS), load(folders[name], tmp_path)
    first = cold.encode(PROMPTS)
    assert opened
    gc.collect()
    assert not any(ref() for ref in opened)
    assert encoders(cold)
    assert not any(encoders(cold))
    opened.clear()
    warm = load(folders[name], tmp_path)
    second = warm.encode(PROMPTS)
    assert not opened
    assert not any(encoders(warm))
    assert len(files(tmp_path)) == 3  # the empty caption among them
    for cond in (first, second):
        assert torch.equal(cond.index, plain.index)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(cond.parts, plain.parts, strict=True))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_rollout_and_the_stock_pipeline_are_the_same_with_a_cache(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    plan = Plan(3, FlowSde() if name in FLOWS else Ddim(), Whole())
    policies = [load(folders[name], cache, guidance=2.0, lora=Lora(4)) for cache in (None, tmp_path, tmp_path)]
    ends = [roll(policy, PROMPTS, 2, plan, iteration=0, seed=0).x0 for policy in policies]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    stock = [policy.stock(TEXTS[:2], policy.noise((0,), range(2)), 3) for policy in policies[:2]]
    assert torch.equal(*stock)
    assert not any(encoders(policies[1]))


def test_an_embedding_depends_on_its_caption_alone(folders: dict[str, Path]) -> None:
    for name in ("sd15", "qwen-image"):
        policy = load(folders[name])
        together, alone = policy.encode([Prompt("a much longer caption"), *PROMPTS]), policy.encode(PROMPTS[:1])
        row, length = together.index[1], alone.parts[0].shape[1]
        assert torch.equal(together.parts[0][row, :length], alone.parts[0][0])


def test_captions_encoded_differently_have_files_of_their_own(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["sd15"], tmp_path)
    for count, (settings, precision) in enumerate([({"tokens": 20}, "fp32"), ({}, "bf16"), ({}, "fp32")], start=2):
        load(folders["sd15"], tmp_path, precision, **settings)
        assert len(files(tmp_path)) == min(count, 3)
    folder = save("sd15", tmp_path / "other")
    config = folder / "text_encoder/config.json"
    config.write_text(config.read_text() + "\n")
    load(folder, tmp_path)
    assert len(files(tmp_path / "..")) >= 4
    assert sum("other" not in str(file) for file in files(tmp_path)) == 4


def test_a_damaged_file_is_reported_and_encoded_again(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(folders["sd15"], tmp_path).encode(PROMPTS).parts[0]
    whole = {file: file.read_bytes() for file in files(tmp_path)}
    cut, turned, page = whole
    cut.write_bytes(whole[cut][:-100])
    turned.write_bytes(whole[turned][:-1] + bytes([whole[turned][-1] ^ 1]))
    page.write_text("<html>")
    with caplog.at_level(logging.WARNING):
        embedding = load(folders["sd15"], tmp_path).encode(PROMPTS).parts[0]
    assert torch.equal(embedding, expected)
    assert {file: file.read_bytes() for file in files(tmp_path)} == whole
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3
    for file in whole:
        (line,) = [line for line in warnings if str(file) in line]
        assert line.startswith("grpaint: ")
        assert "\n" not in line
        assert line.endswith("encoded again.")


def test_a_folder_that_cannot_be_written_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r'^model\.cache = ".*": cannot be written \(.*\)\. .*"encode"\.$'):
        load(folders["sd15"], tmp_path / "file")


def test_a_bounded_number_of_bytes_stays_at_hand(tmp_path: Path) -> None:
    captions: list[str] = []

    def encode(texts: Any) -> Any:
        for text in texts:
            captions.append(text)
            yield (torch.full((1, 10), float(len(text))),)  # 40 bytes

    cache = EmbeddingCache(tmp_path, "tests", encode, memory=100)
    texts = ["a" * count for count in range(5)]
    assert [parts[0][0, 0].item() for parts in cache(texts)] == [0, 1, 2, 3, 4]
    assert list(cache._recent) == texts[3:]
    assert cache(texts[:1])[0][0].eq(0).all()
    assert list(cache._recent) == [texts[4], texts[0]]
    assert cache._recent_bytes == 80
    again = EmbeddingCache(tmp_path, "tests", encode)
    assert again.prepare([*texts, "other", "other"]) == 1
    assert captions == [*texts, "other"]


def test_writers_may_share_a_folder(tmp_path: Path) -> None:
    """A file appears whole: another process's part is neither read nor in the way."""
    encode = lambda texts: (((torch.ones(1, 3) * len(text)),) for text in texts)  # noqa: E731
    one, other = (EmbeddingCache(tmp_path, "tests", encode) for _ in range(2))
    file = one.file("cat")
    file.parent.mkdir(parents=True)
    file.with_name(f".{file.name}.0.part").write_bytes(b"half")
    assert torch.equal(one(["cat"])[0][0], other(["cat"])[0][0])
    assert [path.name for path in files(tmp_path)] == [file.name]


# Captions that are cut.


@pytest.mark.parametrize("name", FAMILIES[:-1])  # the last cuts no caption
def test_truncated_captions_are_counted_and_reported_once(
    folders: dict[str, Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A longer caption says more to the network until the room that the family states is used up, and no further."""
    policy = load(folders[name], **({"tokens": 350} if name in ("qwen-image", "z-image") else {}))  # with a template
    limits = policy.family.room(policy.pipe, policy.spec.tokens)
    assert limits
    tokenizer, room = limits
    fits = "a" * room
    fits = fits[: 2 * room - len(tokenizer(fits, add_special_tokens=False).input_ids)]  # T5's begin with a mark
    assert len(tokenizer(fits, add_special_tokens=False).input_ids) == room
    longer = [fits[:-1], fits, f"{fits}b", f"{fits}bc"]
    with caplog.at_level(logging.WARNING, logger="grpaint"):
        cond = policy.encode([Prompt(text) for text in longer])
        policy.encode([Prompt(longer[-1])])
    assert policy.meter.truncated() == {"prompts/truncated": 3 / 5}
    assert policy.meter.truncated() == {}
    (record,) = [record for record in caplog.records if record.name.startswith("grpaint")]
    assert f"of which the text encoders read {room}" in record.getMessage()
    assert repr(longer[2][:60])[:-1] in record.getMessage()
    states = [cond.parts[0][row] for row in cond.index.tolist()]
    assert not torch.allclose(states[0], states[1], rtol=1e-3, atol=1e-3)
    if name not in ("z-image", "flux2-dev", "flux2-klein-base"):  # their end marks are cut before the caption is
        torch.testing.assert_close(states[2], states[3], rtol=1e-4, atol=1e-5)
    with policy.meter.account("evaluation"):
        policy.encode([Prompt(longer[-1])])
    assert policy.meter.truncated() == {}


# A run.

DATA = """
from dataclasses import dataclass
from grpaint.scenes.world import SceneData

@dataclass(frozen=True)
class Few(SceneData):
    def prompts(self, count, iteration, seed):
        return super().prompts(count, iteration % 2, 7)

    def captions(self):
        return [p.text for i in range(2) for p in self.prompts(2, i, 0)] + [
            p.text for p in self.held_out(2, 1000)] + [p.text for p in self.held_out_images(2, 1000).prompts]
"""
RECIPE = """
[model]
kind = "diffusers"
base = "pipe"
height = 32
width = 32
tokens = 14
lora = { rank = 2 }
embeddings = "cache"
cache = "embeddings"

[data]
kind = "data.py:Few"

[plan]
steps = 3
sampler = { kind = "ddim" }

[rewards.bright]
kind = "reward.py:score"

[train]
iterations = 4
prompts = 2
group_size = 4
learning_rate = 1e-3

[evaluate]
steps = 2
"""
SETS = (*tiny_runs.QUICK, "evaluate.prompts=2", "evaluate.probe=2", "train.iterations=3")


def test_a_run_is_resumed_bit_for_bit_with_a_cold_cache_a_warm_one_and_none(tmp_path: Path) -> None:
    with tiny_runs.folder(tmp_path):
        PIPELINES["sd15"]().save_pretrained("pipe")
        Path("data.py").write_text(DATA)
        Path("recipe.toml").write_text(RECIPE)
        end = command("train", "recipe.toml", "--name", "cold", sets=SETS)
        assert end.code == 0, end.err
        assert "captions encoded, and kept" in end.out
        file_count = len(files(Path("embeddings")))
        end = command("train", "recipe.toml", "--name", "halves", sets=[*SETS, "train.iterations=2"])
        assert end.code == 0, end.err
        assert "captions encoded" not in end.out
        assert len(files(Path("embeddings"))) == file_count  # warm, and now cold again
        shutil.rmtree("embeddings")
        assert command("train", "--name", "halves", "--resume", sets=["train.iterations=3"]).code == 0
        plain = [*SETS, 'model={kind="diffusers",base="pipe",height=32,width=32,tokens=14,lora={rank=2}}']
        assert command("train", "recipe.toml", "--name", "plain", sets=plain).code == 0
        for other in ("halves", "plain"):
            tiny_runs.same(Path("runs/cold"), Path("runs") / other)
        shares = [line["prompts/truncated"] for line in lines(Path("runs/cold/metrics.jsonl"))]
        assert shares == [1.0] * 3  # letters are tokens here, and 14 of them are read
