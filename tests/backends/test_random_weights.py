"""Pipelines built from sizes alone."""

from pathlib import Path

import pytest
from torch import nn

from grpaint.backends.diffusers import Diffusers
from grpaint.backends.synthetic.pipelines import SIZES, pipeline, save
from grpaint.core.runtime import Runtime
from tiny_pipelines import stock


# Millions of parameters of the network and the VAE: those of the real models (SDXL's paper: 2.6 B; SSD-1B: 1.3 B;
# FLUX.1: 11.9 B; SD3.5 medium: 2.2 B, and tables of places besides).
@pytest.mark.parametrize(
    ("name", "network", "vae"),
    [("sdxl", 2565, 84), ("ssd-1b", 1329, 84), ("sd3.5-medium", 2243, 84), ("flux", 11901, 84)],
)
def test_real_sizes(name: str, network: float, vae: float) -> None:
    pipe = pipeline(SIZES[name], device="meta")
    statistics = {
        part: sum(p.numel() for p in module.parameters()) / 1e6
        for part, module in pipe.components.items()
        if isinstance(module, nn.Module)
    }
    assert statistics["unet" if "unet" in statistics else "transformer"] == pytest.approx(network, abs=1)
    assert statistics["vae"] == pytest.approx(vae, abs=1)


def test_the_demo_reads_words_and_opens(tmp_path: Path) -> None:
    folder = save("demo", tmp_path / "demo", words=["circle", "red", "a", "above"])
    tokenizer = stock(folder).tokenizer
    assert len(tokenizer("a red circle above a circle").input_ids) == 6 + 2
    assert len(tokenizer("ab").input_ids) == 2 + 2  # a word within a word stays letters
    spec = Diffusers(str(folder))
    assert spec.sample_shape == (4, 8, 8)
    assert spec.pixels == (32, 32)
    assert spec.load(Runtime()).name == "sdxl"
