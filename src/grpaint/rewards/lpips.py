"""The LPIPS distance to the prompt's reference image as a reward."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, WeightSource
from grpaint.rewards.model import ModelReward
from grpaint.rewards.references import references
from grpaint.rewards.self_test_images import noise, sunset
from grpaint.vision.lpips import MIN_SIDE, load_lpips


@dataclass(frozen=True, kw_only=True)
class LpipsToReference(ModelReward):
    """Minus the LPIPS distance to the prompt's reference image; at most 0, the score of the reference itself.

    ``weights`` is torchvision's AlexNet, ``heads`` the published channel weights of LPIPS 0.1 for it.
    """

    needs_reference = True
    needs_caption = False

    weights: str = "alexnet-owt-7be5be79.pth"
    heads: str = "alex.pth"

    @property
    def best(self) -> float:
        return 0.0

    def sources(self) -> tuple[WeightSource, ...]:
        alexnet, heads = "alexnet-owt-7be5be79.pth", "alex.pth"
        return (
            WeightSource("weights", self.weights, (alexnet,), f"https://download.pytorch.org/models/{alexnet}"),
            WeightSource(
                "heads",
                self.heads,
                (heads,),
                f"https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/{heads}",
            ),
        )

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        network = load_lpips(*self.files(), str(images.device), self.precision)
        return -network.distance(images, references(prompts).to(images.device))

    def pair(self) -> Pair:
        picture = sunset(MIN_SIDE)
        return Pair(picture, noise(MIN_SIDE), Prompt("", reference=picture), -5, 0)
