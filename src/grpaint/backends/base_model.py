"""Where a pipeline's parts come from: a folder or a hub's repository, and perhaps a single file with some of them."""

import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from grpaint.backends.families import FAMILIES, Family, Folder
from grpaint.backends.families.schedule import KINDS
from grpaint.backends.pipeline_files import located
from grpaint.backends.single_file import NETWORK, SingleFile, is_single_file, recognised
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.storage.files import check_tensors

Wanted = Literal["auto", "epsilon", "v"]
SCHEDULER = "scheduler/scheduler_config.json"
ABSENT = (None, None)  # a part that model_index.json leaves out


@dataclass(frozen=True)
class BaseModel:
    """The settings of a pipeline, and the single file that holds some of its parts. ``name`` is where it was found."""

    name: str
    settings: Folder
    single: SingleFile | None = None

    @cached_property
    def folder(self) -> Path:
        """The folder, with the weight files of the parts that the single file lacks.

        Raises:
            ConfigError: where they are missing here and the hub does not give them.
        """
        return located(self.name, weights=True, key="model.config" if self.single else "model.base", held=self.held)

    @property
    def held(self) -> tuple[str, ...]:
        """The pipeline's parts that the single file holds."""
        return tuple(self.single.parts) if self.single else ()

    @property
    def license(self) -> str | None:
        """What the file's header or the folder's README.md says of its license."""
        if self.single:
            return self.single.license
        card = self.settings.path / "README.md"
        found = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
        return found[1] if found else None

    def about(self, family: str) -> str:
        """What the model is, and where its parts are read."""
        if not self.single:
            return f"{family} from {self.settings.path}"
        parts = ", ".join(sorted(self.held))
        return f"{self.single.about}: {parts} from {self.single.path}, the rest from {self.settings.path}"

    def family(self, name: str, family: Family) -> tuple[str, Family]:
        """The family that the settings name, held to the file's.

        Raises:
            ConfigError: where they are of different families.
        """
        if self.single and name in FAMILIES and name != self.single.family:
            raise ConfigError(
                f'model.config = "{self.settings.path}": settings of the family {name}, and {self.single.path} is '
                f"{self.single.about}. Name a folder or hub id of the same architecture."
            )
        return name, family

    def rescheduled(self, scheduler: Any) -> Any:
        """The scheduler with the prediction type that this model has."""
        changes = self.settings.changes.get(SCHEDULER)
        return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler


def find_base(base: str, config: str, prediction: Wanted) -> BaseModel:
    """A model's settings, without opening weights.

    Raises:
        ConfigError, CheckpointError: where something is missing, or has to be said by the user.
    """
    if not is_single_file(base):
        if config:
            raise ConfigError(f'model.config = "{config}": only for a base of one file; {base} has its own settings.')
        folder = Folder(located(base, weights=False))
        return BaseModel(base, _predicting(folder, None if prediction == "auto" else prediction))
    single = recognised(base)
    if not config:
        raise ConfigError(
            f'model.base = "{base}": {single.about}; a single file has no tokenizers and no settings. Set model.config '
            "to a folder in the diffusers layout of the same architecture, or a hub id (`grpaint fetch` gets it): its "
            f"model_index.json, scheduler/, tokenizer*/, config.json of each part{_missing(single)}."
        )
    folder = Folder(located(config, weights=False, key="model.config"))
    return BaseModel(config, _predicting(folder, single.predicts(prediction)), single)


def _missing(single: SingleFile) -> str:
    wanted = {"sd15": 1, "sdxl": 2, "sd3": 3, "flux": 2}[single.family]
    encoders = ["text_encoder", "text_encoder_2", "text_encoder_3"][:wanted]
    lacking = [part for part in ("vae", *encoders) if part not in single.parts]
    return f", and the weights of {', '.join(lacking)}" if lacking else ""


def _predicting(folder: Folder, predicts: str | None) -> Folder:
    """The folder's settings with the prediction type exchanged, where another is known."""
    if not predicts:
        return folder
    said = folder.settings(SCHEDULER)
    if "Flow" in str(said.get("_class_name")):
        raise ConfigError(
            f'model.prediction = "{predicts}": this model is a flow, which predicts a velocity. Leave it out.'
        )
    name = next(name for name, kind in KINDS.items() if kind == predicts)
    if said.get("prediction_type", "epsilon") == name:
        return folder
    return Folder(folder.path, {SCHEDULER: {"prediction_type": name}})


def open_parts(
    base: BaseModel, family: Family, dtypes: Mapping[str, torch.dtype], without: Collection[str] = ()
) -> dict[str, nn.Module]:
    """The parts that the single file holds, but ``without``. The network is held to the settings before its weights.

    Raises:
        CheckpointError: where the file is of another architecture than the settings.
    """
    single, folder = base.single, base.settings
    if single is None:
        return {}
    index = folder.settings("model_index.json")
    known = [part for part in single.parts if (index.get(part) or ABSENT)[0]]  # settings may leave T5 out
    wanted = [part for part in known if part not in without]
    classes = {part: getattr(importlib.import_module(index[part][0]), index[part][1]) for part in wanted}
    if family.NETWORK in classes:
        _check_network(single, folder, family.NETWORK, classes[family.NETWORK])
    found = {}
    for part, kind in classes.items():
        found[part] = _part(single, folder.path, part, kind, dtypes.get(part, dtypes["default"]))
        lacking = [name for name, parameter in found[part].named_parameters() if parameter.is_meta]
        if lacking:
            raise CheckpointError(
                f"{single.path}: its {part} is not that of {folder.path}: {len(lacking)} tensors missing, for example "
                f"{lacking[0]}."
            )
    return found


def _tensors(single: SingleFile, part: str) -> dict[str, Tensor]:
    """A part's tensors, under the names that diffusers' converters know."""
    with safe_open(single.path, "pt") as opened:
        return {_known(single, part, name): opened.get_tensor(name) for name in single.names(part)}


def _known(single: SingleFile, part: str, name: str) -> str:
    return name if single.parts[part] else NETWORK + name


def _part(single: SingleFile, folder: Path, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
    from diffusers import ModelMixin
    from diffusers.loaders import single_file_utils as convert

    tensors, where = _tensors(single, part), {"subfolder": part, "local_files_only": True}
    if issubclass(kind, ModelMixin):
        return kind.from_single_file(tensors, config=str(folder), dtype=dtype, **where)
    if "t5" in single.parts[part]:
        made = convert.create_diffusers_t5_model_from_checkpoint
    else:
        made = convert.create_diffusers_clip_model_from_ldm
    encoder = made(kind, checkpoint=tensors, config=str(folder), torch_dtype=dtype, **where)
    encoder.tie_weights()
    return encoder


def _check_network(single: SingleFile, folder: Folder, part: str, kind: Any) -> None:
    """Hold the file's network to its settings, name by name and shape by shape, on tensors without contents."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    config = kind.load_config(folder.path, subfolder=part, local_files_only=True)
    with torch.device("meta"):
        wanted = kind.from_config(config).state_dict()
        tensors = {_known(single, part, name): torch.empty(single.shapes[name]) for name in single.names(part)}
    convert = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
    where = f"{single.path} ({single.about}), held to {folder.path / part}"
    try:
        found = convert(checkpoint=tensors, config=config)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{where}: diffusers cannot read it so ({' '.join(str(error).split())}).") from error
    check_tensors(Path(where), found, wanted, {}, {})
