"""A downloaded pipeline is data: whatever its folder names, nothing of its own is imported, unpickled or downloaded."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from grpaint.backends.adapters import Lora
from grpaint.backends.counting import token_counts
from grpaint.backends.diffusers import Diffusers
from grpaint.backends.fake import fake_runtime
from grpaint.backends.pipeline import text_encoders
from grpaint.core import CheckpointError, ConfigError
from grpaint.core.runtime import Runtime
from grpaint.vision.pretrained import Tokenizer
from original_layout import original
from tiny_pipelines import save
from tiny_unets import sd15

EVIL = """
from pathlib import Path
Path({ran!r}).touch()
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
Model, Scheduler, Tokenizer = UNet2DConditionModel, DDIMScheduler, CLIPTokenizer
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd15", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline with a module beside and in every part, importable from the current folder."""
    copy = shutil.copytree(pristine, tmp_path / "sd15")
    for place in (copy, tmp_path, *(part for part in copy.iterdir() if part.is_dir())):
        (place / "evil.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(copy)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return copy


def change(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refusal(call: Callable[[], object]) -> str:
    """The line with which something is refused; empty if it is not."""
    try:
        call()
    except (CheckpointError, ConfigError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("runtime", [Runtime(), fake_runtime("cpu", "fp32")], ids=["open", "plan"])
@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("unet", ["evil", "Model"]),
        ("unet", ["evil.py", "Model"]),
        ("scheduler", ["evil", "Scheduler"]),
        ("tokenizer", ["evil", "Tokenizer"]),
        ("vae", ["sys", "intern"]),
        ("vae", ["diffusers.models", "AutoencoderKL"]),
        ("unet", ["diffusers", "DiffusionPipeline"]),
        ("unet", ["diffusers", "evil"]),
        ("text_encoder", ["transformers", "pipeline"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["kolors", "KolorsPipeline"]),
        ("text_encoder", ["kolors", "text_encoder"]),
        ("text_encoder", ["transformers", ["CLIPTextModel"]]),
        ("text_encoder", [["evil"], "Model"]),
        ("text_encoder", ["evil"]),
    ],
    ids=str,
)
def test_the_parts_of_a_folder_are_classes_of_diffusers_and_transformers(
    folder: Path, part: str, kind: list[Any], runtime: Runtime
) -> None:
    change(folder / "model_index.json", **{part: kind})
    with pytest.raises((CheckpointError, ConfigError), match=rf"model_index.json: {part} = .*names no code"):
        Diffusers(str(folder)).load(runtime)
    assert not (folder.parent / "ran").exists()


def test_the_class_of_a_pipeline_is_no_file_of_its_folder(folder: Path) -> None:
    change(folder / "model_index.json", _class_name=["evil", "Model"])
    assert "no family reads" in refusal(lambda: Diffusers(str(folder)).load(Runtime()))
    assert "_class_name = ['evil'" in refusal(lambda: Diffusers(str(folder), family="sd15").load(Runtime()))
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("part", ["../unet", "/etc", "text_encoder/../../x", "tokenizer\x1b[31m", ""])
def test_a_part_is_a_folder_of_its_pipeline(folder: Path, part: str) -> None:
    change(folder / "model_index.json", **{part: ["transformers", "CLIPTextModel"]})
    line = refusal(lambda: Diffusers(str(folder)).load(Runtime()))
    assert "is no name of a part" in line
    assert line.isprintable()


def test_a_shard_is_a_file_of_its_part(folder: Path) -> None:
    (weights,) = (folder / "unet").glob("*.safetensors")
    shutil.copy(weights, folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../outside.safetensors"}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    assert "must name files beside it" in refusal(lambda: Diffusers(str(folder)).load(Runtime()))


def test_the_parts_of_a_single_file_are_such_classes_too(folder: Path) -> None:
    save_file(original(sd15()), folder.parent / "one.safetensors")
    change(folder / "model_index.json", unet=["evil", "Model"])
    spec = Diffusers(str(folder.parent / "one.safetensors"), config=str(folder))
    with pytest.raises(CheckpointError, match="names no code"):
        spec.load(Runtime())
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("file", ["processor_config.json", "audio_tokenizer_config.json"])
def test_a_processor_opens_no_further_model(folder: Path, file: str) -> None:
    names = {"audio_tokenizer_class": "evil.Model", "audio_tokenizer_name_or_path": "someone/evil"}
    entries = {"audio_tokenizer": names} if file.startswith("processor") else names
    (folder / "tokenizer" / file).write_text(json.dumps(entries))
    assert "would run a program from elsewhere" in refusal(lambda: Diffusers(str(folder)).load(Runtime()))


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json", "tokenizer_config.json"])
def test_a_processor_follows_no_auto_map(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether code may run"))
    root = save("qwen-image-2.1", tmp_path)
    (root / "processor" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    if not (root / "processor" / file).is_file():
        (root / "processor" / file).write_text("{}")
    change(root / "processor" / file, auto_map={"AutoImageProcessor": "evil.Model", "AutoTokenizer": "evil.Model"})
    line = refusal(lambda: Diffusers(str(root)).load(Runtime()))
    assert f"{file}: auto_map = " in line
    assert not (tmp_path / "ran").exists()


def test_a_list_of_numbers_is_a_setting_of_a_pipeline_and_no_part(folder: Path) -> None:
    change(folder / "model_index.json", text_encoder_select_layers=[1, 2])
    spec = Diffusers(str(folder))
    assert text_encoders(spec.origin) == ("text_encoder",)
    assert spec.load(Runtime()).pipe.text_encoder is not None


AUTO_MAP = {
    "AutoModel": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
    "AutoConfig": "evil.Model",
}


def test_an_auto_map_is_never_followed(folder: Path) -> None:
    for file in folder.rglob("*.json"):
        if isinstance(json.loads(file.read_text()), dict):
            change(file, auto_map=AUTO_MAP, trust_remote_code=True, custom_pipeline="evil")
    assert "\n" not in refusal(lambda: Diffusers(str(folder)).load(Runtime()))
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "Tokenizer", None])
def test_a_tokenizer_brings_no_code_and_nobody_is_asked(
    folder: Path, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for name in ("tokenizer_config.json", "config.json"):
        file = folder / "tokenizer" / name
        if not file.is_file():
            file.write_text("{}")
        change(file, auto_map=AUTO_MAP, tokenizer_class=kind, model_type="evil")
    for opened in (lambda: Tokenizer(folder / "tokenizer", 16), lambda: token_counts(Diffusers(str(folder)))):
        assert "\n" not in refusal(opened)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("runtime", [Runtime(), fake_runtime("cpu", "fp32")], ids=["open", "plan"])
def test_a_folder_names_no_program_of_the_hub(folder: Path, key: str, runtime: Runtime) -> None:
    change(folder / "text_encoder/config.json", **{key: "somebody/kernel"})
    with pytest.raises(CheckpointError, match=rf"config.json: {key} = .*somebody/kernel.* would run"):
        Diffusers(str(folder)).load(runtime)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_opened_as_tensors_alone(folder: Path, part: str) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder.parent}/ran",)

    (weights,) = (folder / part).glob("*.safetensors")
    name = next(iter(load_file(weights)))
    weights.unlink()
    stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
    with (folder / part / f"{stem}.bin").open("wb") as opened:
        pickle.dump({name: Evil()}, opened)
    with pytest.raises(CheckpointError) as caught:
        Diffusers(str(folder)).load(Runtime())
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"unet.r": 0}', '{"unet.r": "evil.py:f"}', '{"unet.lora_alpha": [1]}'])
def test_the_header_of_an_adapter_is_checked(folder: Path, text: str) -> None:
    from grpaint.storage.files import write_weights

    spec = Diffusers(str(folder), lora=Lora(4))
    tensors, header = spec.load(Runtime()).export("current")
    write_weights(folder.parent / "a.safetensors", tensors, header | {"lora_adapter_metadata": text})
    with pytest.raises((CheckpointError, ConfigError), match=r"a\.safetensors"):
        spec.from_file(str(folder.parent / "a.safetensors")).load(Runtime())
