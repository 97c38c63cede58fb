"""A whole SDXL-type run without a download: a real U-Net, VAE and LoRA through diffusers, all of them made here.

    python examples/demo-diffusers/run.py        (or: make demo-diffusers)

It builds a small pipeline from sizes, trains its VAE on drawn scenes and checks what it reconstructs, trains the U-Net
on them (`grpaint sft`), exports that as a pipeline, post-trains it with MixGRPO through LoRA (`grpaint train`), and
exports the adapter for diffusers and ComfyUI. Every part is skipped where it is there already: repeat it to go on.
"""

import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from grpaint.backends.synthetic.pipelines import save
from grpaint.core.runtime import has_matrix_units
from grpaint.measures.intervals import paired_difference
from grpaint.run.folder import RunFolder
from grpaint.scenes.captions import VOCABULARY
from grpaint.scenes.world import SceneData

HERE, BASE = Path(__file__).parent, Path("runs/demo-diffusers-base")
VAE_STEPS, VAE_BATCH = 1000, 32


def make_base() -> None:
    """The pipeline with random weights, and a VAE that has learned the scenes; its latents get unit variance."""
    from diffusers import AutoencoderKL

    aside = BASE.with_name(BASE.name + ".part")
    save("demo", aside, words=[word for word in VOCABULARY if word])
    data, vae = SceneData(), AutoencoderKL.from_pretrained(aside / "vae").train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=8e-4, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-4, VAE_STEPS)
    for step in range(VAE_STEPS):
        images = data.batch(VAE_BATCH, step, 7).images() * 2 - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=has_matrix_units()):
            code = vae.encode(images).latent_dist
            again = vae.decode(code.sample()).sample
        loss = functional.mse_loss(again.float(), images) + 1e-6 * code.kl().float().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if not (step + 1) % 200:
            print(f"VAE {step + 1}/{VAE_STEPS}  loss {loss.item():.5f}", flush=True)
    vae.eval()
    held_out = data.held_out_images(256, 1)
    images, prompts = held_out.images(), held_out.prompts
    with torch.no_grad():
        latents = vae.encode(images * 2 - 1).latent_dist.mode()
        again = ((vae.decode(latents).sample + 1) / 2).clamp(0, 1)
    strict = data.measures(again, prompts)["strict"].mean().item()
    noise = -10 * math.log10((again - images).square().mean().item())
    print(f"VAE reconstructs held-out scenes: {100 * strict:.1f}% still show their caption, PSNR {noise:.1f} dB")
    if strict < 0.9:
        raise SystemExit("the VAE loses what captions ask for; the demo would measure nothing")
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    vae.save_pretrained(aside / "vae")
    aside.rename(BASE)


def grpaint(*words: str) -> None:
    """One of our commands, as a user types it."""
    print("$ grpaint", *words, flush=True)
    subprocess.run([sys.executable, "-c", "from grpaint.cli import main; main()", *words], check=True)


def stage(command: str, recipe: str, name: str, *words: str) -> RunFolder:
    """A run, begun or gone on with."""
    folder = RunFolder(Path("runs") / name)
    if not folder.path.exists():
        grpaint(command, str(HERE / recipe), "--name", name, *words)
    elif folder.facts().get("status") != "finished":
        grpaint(command, "--name", name, "--resume")
    return folder


def export(run: RunFolder, target: str) -> None:
    """A run as other programs read it, in exports/."""
    out = Path("exports") / f"{run.path.name}-{target}"
    if not out.exists():
        grpaint("export", str(run.path), "--for", target, "--out", str(out))


def main() -> None:
    began = time.perf_counter()
    if not BASE.is_dir():
        make_base()
    sft = stage("sft", "sft.toml", "demo-diffusers-sft")
    export(sft, "merged")
    tuned = stage("train", "mix-grpo.toml", "demo-diffusers")
    for target in ("diffusers", "comfyui"):
        export(tuned, target)
    first, *_, last = tuned.lines("evaluations.jsonl")
    gain, (low, high) = paired_difference(first["soft_by_prompt"], last["soft_by_prompt"])
    error = (high - low) / 2 / 1.959964
    print(
        f"soft score {first['soft']:.3f} -> {last['soft']:.3f}: {gain:+.4f} [{low:+.4f}, {high:+.4f}], "
        f"{gain / error:.1f} standard errors; {(time.perf_counter() - began) / 60:.1f} minutes"
    )
    if gain < 3 * error:
        raise SystemExit("less than three standard errors above the base")


if __name__ == "__main__":
    main()
