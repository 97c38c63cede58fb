"""Feature extractors: what they read, what they say of themselves, and what they refuse."""

import hashlib
import json

import pytest
import torch

from grpaint.core.errors import CheckpointError, ConfigError, MissingExtra
from grpaint.measures.features import ClipFeatures, InceptionFeatures, ScenesFeatures
from grpaint.scenes.scorer import SHIPPED, shipped_scorer
from grpaint.scenes.world import SceneData

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = text | {"image_size": 32, "patch_size": 8}
    text |= {"vocab_size": 40, "max_position_embeddings": 8}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    return folder


def test_scenes_features_are_those_of_the_shipped_scorer():
    images = SceneData().held_out_images(3, 0).images()
    features = ScenesFeatures()
    ours = features(images)
    assert ours.shape == (3, features.width) == (3, 192)
    length = ours.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours / length, shipped_scorer().image_features(images))
    card = features.card()
    assert card["weights"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:16]
    assert (card["name"], card["resize"], card["input"]) == ("scenes-scorer features", "none", "32x32")
    with pytest.raises(ValueError, match="32 x 32 drawings"):
        features(torch.zeros(1, 3, 64, 64))


def in_eight_bits(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 255).round() / 255


def test_clip_features_are_the_models_own(clip):
    from transformers import CLIPModel

    features, images = ClipFeatures(str(clip)), in_eight_bits(2, 3, 32, 32)
    assert (features.width, features.side) == (24, 32)
    pixels = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(features(images), expected, rtol=0, atol=1e-4)
    card = features.card()
    assert card["weights"] == hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert card["resize"] == "8 bits, bicubic by Pillow, shortest side, centre crop"


def test_clip_features_round_to_eight_bits_and_read_the_middle(clip):
    features, square = ClipFeatures(str(clip)), in_eight_bits(1, 3, 32, 32)
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = square + 0.4 / 255
    torch.testing.assert_close(features(wide), features(square), rtol=0, atol=1e-6)
    assert features(square).norm() != pytest.approx(1, abs=0.01)


def test_missing_files_are_one_line(tmp_path, clip):
    with pytest.raises(ConfigError, match=r"config.json not found; name the folder of a CLIP model"):
        assert ClipFeatures(str(tmp_path)).width
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((clip / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"features.path = .*model.safetensors not found"):
        ClipFeatures(str(broken))(torch.zeros(1, 3, 32, 32))
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        ClipFeatures(str(broken))(torch.zeros(1, 3, 32, 32))
    (broken / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not a CLIP model"):
        ClipFeatures(str(broken))(torch.zeros(1, 3, 32, 32))
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        assert ClipFeatures(str(broken)).width
    with pytest.raises(ConfigError, match="no such file"):
        InceptionFeatures(str(tmp_path / "inception.pth")).card()


def test_inception_asks_for_its_extra(tmp_path):
    (tmp_path / "inception.pth").write_bytes(b"")
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r"grpaint\[inception\]"):
            InceptionFeatures(str(tmp_path / "inception.pth")).card()
