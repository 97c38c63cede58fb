"""What is killed: recipes of both worlds, an adapter on a pipeline, a comparison, and a reward's server."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.processes import Child, fork
from tiny_runs import QUICK, REWARD_FILE, flags

SIZES = (
    *QUICK,
    "model.start=random",
    "train.iterations=6",
    "train.prompts=2",
    "train.group_size=4",
    "evaluate.every=2",
    "evaluate.prompts=4",
    "evaluate.steps=2",
    "evaluate.probe=4",
    "checkpoint.every=1",
    "checkpoint.keep=2",
)
BRIGHT = 'rewards={bright={kind="reward.py:score"}}'
WORKER = 'rewards={bright={kind="worker",reward="far.py:score",images="raw"}}'
FAR = """
def score(images, prompts, metadata):
    return [sum(raw) / len(raw) / 255 + 0.1 * (row % 4) for row, (_, _, raw) in enumerate(images)]
"""
TRAINED = (
    "scenes/flow-grpo-fast", "scenes/mix-grpo", "scenes/pro-grpo", "scenes/diffusion-nft", "scenes/awm",
    "scenes-epsilon/ddpo", "scenes-epsilon/mix-grpo", "scenes-epsilon/pro-grpo",
)  # fmt: skip
OWN = {
    "scenes/pro-grpo": ("train.group_size=8", "plan.prune.keep=[6, 4]", "plan.prune.audit=2"),
    "scenes-epsilon/pro-grpo": ("train.group_size=8", "plan.prune.keep=[6, 4]", "plan.prune.audit=2"),
}
TOKEN = "CHAOS_TOKEN"


@dataclass(frozen=True)
class Subject:
    """A command that is killed and repeated until it ends, in a folder of its own."""

    name: str
    words: tuple[str, ...]
    sets: tuple[str, ...] = ()

    @property
    def is_comparison(self) -> bool:
        """Whether it is ``compare``, whose runs are processes of their own."""
        return self.words[0] == "compare"

    @property
    def is_served(self) -> bool:
        """Whether its reward is another process, which is killed as well."""
        return self.name == "serve-reward"

    def prepare(self, folder: Path) -> None:
        """Write the files that it needs into a new folder."""
        folder.mkdir(parents=True)
        (folder / "reward.py").write_text(REWARD_FILE)
        (folder / "far.py").write_text(FAR)

    def command(self, folder: Path, port: int) -> list[str]:
        """The arguments to begin with, or to go on with where it has begun."""
        if not self.is_comparison and (folder / "runs/it/run.toml").is_file():
            return [self.words[0], "--name", "it", "--resume"]
        end = [] if self.is_comparison else ["--name", "it"]
        return [*self.words, *end, *flags(*(item.replace("PORT", str(port)) for item in self.sets))]

    def run_folders(self, folder: Path) -> list[Path]:
        """The folders of its runs, so far."""
        parent = folder / "out" / "work" / "runs" if self.is_comparison else folder / "runs"
        return sorted(path for path in parent.glob("[!.]*"))


def serve(folder: Path, port: int) -> Child:
    """Start the reward's server."""
    os.environ[TOKEN] = "chaos" * 4
    words = ["reward", "serve", "reward.py:score", "--port", str(port), "--token-env", TOKEN]
    return fork(words, folder, folder / "server.log")


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def subjects(bases: Path, names: Sequence[str] = ()) -> list[Subject]:
    """Every subject, or those of ``names``; a pipeline is written to ``bases`` if it is among them."""
    supervised = (*(item for item in SIZES if not item.startswith(("train.prompts", "train.group"))), "train.batch=4")
    compared = [item for item in SIZES if not item.startswith(("train.iter", "evaluate.every", "checkpoint.every"))]
    words = ("compare", "flow-grpo-fast", "mix-grpo", "--seeds", "0", "--budget-evaluations", "2000", "--out", "out")
    served = f'rewards={{far={{kind="remote",urls=["http://127.0.0.1:PORT"],token_env="{TOKEN}",retries=60,backoff_s=0.05}}}}'
    every = [Subject(name.replace("/", "-"), ("train", name), (*SIZES, BRIGHT, *OWN.get(name, ()))) for name in TRAINED]
    every += [
        Subject(name.replace("/", "-"), ("sft", name), supervised) for name in ("scenes/sft", "scenes-epsilon/sft")
    ]
    every += [
        Subject("worker", ("train", "flow-grpo-fast"), (*SIZES, WORKER)),
        Subject("adapter", ("train", "flow-grpo-fast")),
        Subject("compare", words, (*compared, BRIGHT)),
        Subject("serve-reward", ("train", "flow-grpo-fast"), (*SIZES, served)),
    ]
    chosen = [subject for subject in every if not names or subject.name in names]
    return [replace(subject, sets=_adapter(bases)) if subject.name == "adapter" else subject for subject in chosen]


def _adapter(bases: Path) -> tuple[str, ...]:
    """The settings of LoRA on a pipeline with random weights; its libraries are imported here, before any fork."""
    import diffusers.models.unets.unet_2d_condition  # noqa: F401
    import peft  # noqa: F401

    from tiny_pipelines import save

    pipeline = bases / "sd15"
    if not pipeline.exists():
        save("sd15", bases)
    model = f'model={{kind="diffusers",base="{pipeline}",height=32,width=32,guidance=2.0,lora={{rank=4}}}}'
    plan = 'plan={steps=4,sampler={kind="cps"},window={kind="random",size=2,high=1},start={kind="shared"}}'
    sets = [item for item in SIZES if not item.startswith(("model.", "train.iterations"))]
    return (*sets, BRIGHT, model, plan, "train.iterations=4", "anchor.batch=4", "data.caption_dropout=0")
