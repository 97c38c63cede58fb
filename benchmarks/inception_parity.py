"""Do our Inception features equal torch-fidelity's own? For machines that have it (it needs torchvision).

    python benchmarks/inception_parity.py weights-inception-2015-12-05-6726825d.pth

torch-fidelity reads 64 PNG files by its own loader; we are given the same pixels as tensors in [0, 1]. The largest
difference of a feature must stay below 1e-4, and the Frechet distance of two halves must agree to 1e-3 relative.
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from grpaint.measures.distances import Moments, frechet_distance
from grpaint.measures.features import InceptionFeatures
from grpaint.scenes.world import SceneData


def main(weights: str) -> None:
    """Compare, and exit with 1 where they differ."""
    try:
        from torch_fidelity import calculate_metrics
        from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id
    except ImportError:
        sys.exit("torch-fidelity is not installed: pip install 'grpaint[inception]', with a torchvision that fits.")
    images = SceneData().held_out_images(64, 0).images()
    ours = InceptionFeatures(weights)(images)
    with tempfile.TemporaryDirectory() as place:
        for half in (0, 1):
            folder = Path(place) / str(half)
            folder.mkdir()
            for number, image in enumerate(images[32 * half : 32 * half + 32]):
                pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        settings = {
            "cuda": False, "cache": False, "verbose": False, "batch_size": 32, "samples_find_deep": False,
            "samples_find_ext": "png", "samples_shuffle": False, "feature_extractor_weights_path": weights,
            "input1": str(Path(place) / "0"), "input2": str(Path(place) / "1"),
        }  # fmt: skip
        network = create_feature_extractor("inception-v3-compat", ["2048"], **settings)
        theirs = [extract_featuresdict_from_input_id(k, network, **settings)["2048"] for k in (1, 2)]
        fid = calculate_metrics(fid=True, **settings)["frechet_inception_distance"]
    worst = (torch.cat(theirs).float() - ours).abs().max().item()
    own = frechet_distance(Moments.of(ours[:32]), Moments.of(ours[32:]))
    print(f"features: largest difference {worst:.2e}; FID {own:.6f}, torch-fidelity's {fid:.6f}")
    sys.exit(worst > 1e-4 or abs(own - fid) > 1e-3 * abs(fid))


if __name__ == "__main__":
    main(sys.argv[1])
