"""The files of a pipeline's parts: a folder or hub repository, and optionally a single file with some of the parts."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from grpaint.backends.families import FAMILIES, Family, PipelineFolder
from grpaint.backends.families.folder import SCHEDULER
from grpaint.backends.families.schedule import PREDICTION_TYPES
from grpaint.backends.pipeline_files import pipeline_folder
from grpaint.backends.pipeline_parts import part_class
from grpaint.backends.single_file import NETWORK, SingleFile, is_single_file, read_single_file
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.text import one_line
from grpaint.storage.files import check_tensors

PredictionSetting = Literal["auto", "epsilon", "v"]
SpacingSetting = Literal["auto", "trailing", "distilled"]
ABSENT = (None, None)  # a part that model_index.json leaves out


@dataclass(frozen=True)
class BaseModel:
    """The settings of a pipeline, and optionally the single file that contains some of its parts.

    ``name`` is the path or hub id that the settings come from.
    """

    name: str
    settings: PipelineFolder
    single: SingleFile | None = None

    @cached_property
    def folder(self) -> Path:
        """The folder on this machine, with the weight files of the parts that the single file lacks.

        Raises:
            ConfigError: if they are neither on this machine nor available from the hub.
        """
        key = "model.config" if self.single else "model.base"
        return pipeline_folder(self.name, weights=True, key=key, without=self.file_parts)

    @property
    def file_parts(self) -> tuple[str, ...]:
        """The names of the pipeline's parts that the single file contains."""
        return tuple(self.single.parts) if self.single else ()

    @property
    def license(self) -> str | None:
        """The license named in the single file's header or in the folder's README.md."""
        if self.single:
            return self.single.license
        card = self.settings.path / "README.md"
        match = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
        return match[1] if match else None

    def about(self, family: str) -> str:
        """What the model is, and which files its parts are read from."""
        if not self.single:
            return f"{family} from {self.settings.path}"
        parts = ", ".join(sorted(self.file_parts))
        return f"{self.single.about}: {parts} from {self.single.path}, the rest from {self.settings.path}"

    def family(self, name: str, family: Family) -> tuple[str, Family]:
        """The family of the settings, after a check that the single file is of the same one.

        Raises:
            ConfigError: if they are of different families.
        """
        if self.single and name in FAMILIES and name != self.single.family:
            raise ConfigError(
                f'model.config = "{self.settings.path}": settings of the family {name}, and {self.single.path} is '
                f"{self.single.about}. Name a folder or hub id of the same architecture."
            )
        return name, family

    def with_prediction(self, scheduler: Any) -> Any:
        """``scheduler``, with the prediction type, terminal SNR and spacing of this model."""
        import diffusers

        changes = dict(self.settings.changes.get(SCHEDULER, {}))
        if not changes:
            return scheduler
        name = changes.pop("_class_name", type(scheduler).__name__)
        return getattr(diffusers, name).from_config(scheduler.config, **changes)


def find_base(
    base: str,
    config: str,
    prediction: PredictionSetting,
    *,
    zero_snr: bool = False,
    spacing: SpacingSetting = "auto",
) -> BaseModel:
    """Read a model's settings, without opening weights.

    ``zero_snr``: rescale its noise levels. ``spacing``: of its timesteps, "auto" as its settings have them.

    Raises:
        ConfigError, CheckpointError: if a file is missing, or the user has to set ``config`` or ``prediction``.
    """
    if not is_single_file(base):
        if config:
            raise ConfigError(f'model.config = "{config}": only for a base of one file; {base} has its own settings.')
        folder = PipelineFolder(pipeline_folder(base, weights=False))
        own_prediction = None if prediction == "auto" else prediction
        return BaseModel(base, _with_schedule(folder, own_prediction, zero_snr=zero_snr, spacing=spacing))
    single = read_single_file(base)
    if not config:
        raise ConfigError(
            f'model.base = "{base}": {single.about}; a single file has no tokenizers and no settings. Set model.config '
            "to a folder in the diffusers layout of the same architecture, or a hub id (`grpaint fetch` downloads it): "
            f"its model_index.json, scheduler/, tokenizer*/, config.json of each part{_weights_needed(single)}."
        )
    folder = PipelineFolder(pipeline_folder(config, weights=False, key="model.config"))
    settings = _with_schedule(
        folder, single.prediction(prediction), zero_snr=zero_snr or single.zero_snr, spacing=spacing
    )
    return BaseModel(config, settings, single)


def _weights_needed(single: SingleFile) -> str:
    encoder_count = {"sdxl": 2, "sd3": 3, "flux": 2, "hidream": 4}.get(single.family, 1)
    encoders = ["text_encoder", *(f"text_encoder_{number}" for number in range(2, encoder_count + 1))]
    missing_parts = [part for part in ("vae", *encoders) if part not in single.parts]
    return f", and the weights of {', '.join(missing_parts)}" if missing_parts else ""


def _with_schedule(
    folder: PipelineFolder, prediction: str | None, *, zero_snr: bool, spacing: SpacingSetting
) -> PipelineFolder:
    """``folder`` with another prediction type, terminal SNR and spacing; None, False and "auto" keep its own."""
    settings = {
        f'model.prediction = "{prediction}"': prediction,
        "model.zero_snr = true": zero_snr,
        f'model.spacing = "{spacing}"': spacing != "auto",
    }
    stated = [setting for setting, value in settings.items() if value]
    if not stated:
        return folder
    scheduler = folder.settings(SCHEDULER)
    name = str(scheduler.get("_class_name"))
    changes: dict[str, object] = {}
    if "Flow" in name:
        raise ConfigError(f"{stated[0]}: this model is a flow; the setting is for diffusion models. Leave it out.")
    if spacing == "trailing" and name in ("LCMScheduler", "TCDScheduler"):
        raise ConfigError(f'model.spacing = "trailing": {name} has the timesteps of its distillation. Leave it out.')
    prediction_type = next((name for name, meaning in PREDICTION_TYPES.items() if meaning == prediction), None)
    if prediction_type not in (None, scheduler.get("prediction_type", "epsilon")):
        changes["prediction_type"] = prediction_type
    if zero_snr:
        changes["rescale_betas_zero_snr"] = True
    if spacing == "distilled":
        changes["_class_name"] = "LCMScheduler"
    elif zero_snr or spacing == "trailing":
        changes["timestep_spacing"] = "trailing"
    return PipelineFolder(folder.path, {SCHEDULER: changes} if changes else {})


def open_parts(
    base: BaseModel, family: Family, dtypes: Mapping[str, torch.dtype], without: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Load the parts that the single file contains, except those in ``without``.

    The network's names and shapes are compared with the settings before its weights are read. ``dtypes``: by part,
    "default" for the others.

    Raises:
        CheckpointError: if the file is of another architecture than the settings.
    """
    single, folder = base.single, base.settings
    if single is None:
        return {}
    index = folder.settings("model_index.json")
    present = [part for part in single.parts if (index.get(part) or ABSENT)[0]]  # the settings may leave T5 out
    names = [part for part in present if part not in without]
    classes = {part: part_class(folder, part) for part in names}
    if family.NETWORK in classes:
        _check_network(single, folder, family.NETWORK, classes[family.NETWORK])
    modules = {}
    for part, cls in classes.items():
        modules[part] = _load_part(single, folder.path, part, cls, dtypes.get(part, dtypes["default"]))
        missing = [name for name, parameter in modules[part].named_parameters() if parameter.is_meta]
        if missing:
            raise CheckpointError(
                f"{single.path}: its {part} does not match {folder.path}: {len(missing)} tensors missing, for example "
                f"{missing[0]}."
            )
    return modules


def _tensors(single: SingleFile, part: str) -> dict[str, Tensor]:
    """A part's tensors, under the names that diffusers' converters expect."""
    with safe_open(single.path, "pt") as file:
        return {_converter_name(single, part, name): file.get_tensor(name) for name in single.names(part)}


def _converter_name(single: SingleFile, part: str, name: str) -> str:
    """The name that a converter expects: that of a U-Net has a prefix, that of a transformer has none."""
    if single.parts[part] not in ("", NETWORK):
        return name
    bare = name.removeprefix(NETWORK)
    return NETWORK + bare if part == "unet" else bare


def _load_part(single: SingleFile, folder: Path, part: str, cls: Any, dtype: torch.dtype) -> nn.Module:
    from diffusers import ModelMixin
    from diffusers.loaders import single_file_utils as convert

    tensors, location = _tensors(single, part), {"subfolder": part, "local_files_only": True}
    if issubclass(cls, ModelMixin):
        return cls.from_single_file(tensors, config=str(folder), dtype=dtype, **location)
    if "t5" in single.parts[part]:
        create_encoder = convert.create_diffusers_t5_model_from_checkpoint
    else:
        create_encoder = convert.create_diffusers_clip_model_from_ldm
    encoder = create_encoder(cls, checkpoint=tensors, config=str(folder), torch_dtype=dtype, **location)
    encoder.tie_weights()
    return encoder


def _check_network(single: SingleFile, folder: PipelineFolder, part: str, cls: Any) -> None:
    """Compare names and shapes of the file's network with its settings, on tensors without contents."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    config = cls.load_config(folder.path, subfolder=part, local_files_only=True)
    with torch.device("meta"):
        expected = cls.from_config(config).state_dict()
        tensors = {_converter_name(single, part, name): torch.empty(single.shapes[name]) for name in single.names(part)}
    convert = SINGLE_FILE_LOADABLE_CLASSES[cls.__name__]["checkpoint_mapping_fn"]
    subject = f"{single.path} ({single.about}), compared with {folder.path / part}"
    try:
        converted = convert(checkpoint=tensors, config=config)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{subject}: diffusers cannot convert the file with these settings ({one_line(str(error), 300)})."
        ) from error
    check_tensors(Path(subject), converted, expected, {}, {})
