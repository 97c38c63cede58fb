"""Pipeline families: what differs between diffusers pipelines, one short file each.

A family of your own is a subclass of :class:`Family`, named by ``model.family = "module:Name"`` or ``"file.py:Name"``.
"""

from grpaint.backends.families.base import Family, Guidance
from grpaint.backends.families.folder import PipelineFolder
from grpaint.core.errors import ConfigError
from grpaint.core.importing import import_packaged, import_target
from grpaint.core.user_code import user_code

FAMILIES = {
    "sana": "grpaint.backends.families.sana:Sana",
    "krea2": "grpaint.backends.families.krea2:Krea2",
    "lumina2": "grpaint.backends.families.lumina2:Lumina2",
    "chroma": "grpaint.backends.families.chroma:Chroma",
    "hunyuan-image": "grpaint.backends.families.hunyuan_image:HunyuanImage",
    "flux": "grpaint.backends.families.flux:Flux",
    "flux2": "grpaint.backends.families.flux2:Flux2",
    "flux2-klein": "grpaint.backends.families.flux2:Flux2Klein",
    "kolors": "grpaint.backends.families.kolors:Kolors",
    "hidream": "grpaint.backends.families.hidream:HiDream",
    "qwen-image": "grpaint.backends.families.qwen_image:QwenImage",
    "qwen-image-2.1": "grpaint.backends.families.qwen_image21:QwenImage21",
    "sd15": "grpaint.backends.families.sd15:StableDiffusion",
    "sd3": "grpaint.backends.families.sd3:StableDiffusion3",
    "sdxl": "grpaint.backends.families.sdxl:StableDiffusionXl",
    "z-image": "grpaint.backends.families.z_image:ZImage",
}

__all__ = ["FAMILIES", "Family", "Guidance", "PipelineFolder", "find_family"]


def find_family(name: str, folder: PipelineFolder) -> tuple[str, Family]:
    """The name of a family, and the family; "auto" chooses by the pipeline class in ``model_index.json``.

    Raises:
        ConfigError: if no family supports the pipeline, or the user's own family cannot be imported.
    """
    if name != "auto":
        return name, _load(name)
    pipeline_class = folder.settings("model_index.json").get("_class_name")
    families = {name: _load(name) for name in FAMILIES}
    for family_name, family in families.items():
        if pipeline_class in (family.PIPELINE, *family.ALIASES):
            return family_name, family
    raise ConfigError(
        f'model.base = "{folder.path}": no family reads a pipeline of class "{pipeline_class}". There are: '
        f"{', '.join(f'{name} ({family.PIPELINE})' for name, family in families.items())}; or one of your own, "
        "model.family = module:Name."
    )


def _load(name: str) -> Family:
    if name in FAMILIES:
        family = import_packaged(FAMILIES[name])()
    else:
        with user_code(f'model.family = "{name}": cannot be imported: it', ConfigError):
            family = import_target(name, "model.family")()
    if not isinstance(family, Family):
        raise ConfigError(f'model.family = "{name}": not a subclass of grpaint.backends.families.Family.')
    return family
