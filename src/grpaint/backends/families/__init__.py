"""Pipeline families: what differs between diffusers pipelines, one short file each.

A family of your own is a subclass of :class:`Family`, and ``model.family = "module:Name"`` or ``"file.py:Name"``.
"""

from grpaint.backends.families.base import Family, Guidance
from grpaint.backends.families.folder import Folder
from grpaint.core.errors import ConfigError
from grpaint.core.importing import import_target

FAMILIES = {
    "flux": "grpaint.backends.families.flux:Flux",
    "qwen-image": "grpaint.backends.families.qwen_image:QwenImage",
    "sd15": "grpaint.backends.families.sd15:StableDiffusion",
    "sd3": "grpaint.backends.families.sd3:StableDiffusion3",
    "sdxl": "grpaint.backends.families.sdxl:StableDiffusionXl",
    "z-image": "grpaint.backends.families.z_image:ZImage",
}

__all__ = ["FAMILIES", "Family", "Folder", "Guidance", "find"]


def find(name: str, folder: Folder) -> tuple[str, Family]:
    """A family by name; "auto" goes by the pipeline class in ``model_index.json``.

    Raises:
        ConfigError: where no family knows the pipeline, or one of the user's own cannot be imported.
    """
    if name != "auto":
        return name, _load(name)
    kind = folder.settings("model_index.json").get("_class_name")
    families = {name: _load(name) for name in FAMILIES}
    for known, family in families.items():
        if kind == family.PIPELINE:
            return known, family
    raise ConfigError(
        f'model.base = "{folder.path}": no family reads a pipeline of class "{kind}". There are: '
        f"{', '.join(f'{name} ({family.PIPELINE})' for name, family in families.items())}; or one of your own, "
        "model.family = module:Name."
    )


def _load(name: str) -> Family:
    try:
        made = import_target(FAMILIES.get(name, name))()
    except Exception as error:  # a user's own file may raise anything
        raise ConfigError(f'model.family = "{name}": cannot be imported: {type(error).__name__}: {error}') from error
    if not isinstance(made, Family):
        raise ConfigError(f'model.family = "{name}": not a subclass of grpaint.backends.families.Family.')
    return made
