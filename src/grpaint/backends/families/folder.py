"""A pipeline's folder, whose settings are read as JSON before any weight is opened."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError, GrpaintError, is_out_of_memory
from grpaint.core.text import printable
from grpaint.core.user_code import describe
from grpaint.storage.reading import read_object

OFF = (False, None)
SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class PipelineFolder:
    """A local folder in the diffusers layout.

    ``changes``: by file, settings that replace those in the folder, such as the prediction type of a single file.
    """

    path: FilePath
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings(self, file: str) -> dict[str, Any]:
        """The contents of one of the folder's JSON files.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        path = self.path / file
        try:
            settings = read_object(path) | dict(self.changes.get(file, {}))
        except ConfigError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                reason = f"{path}: not found. Is {self.path} a folder in the diffusers layout?"
                raise CheckpointError(reason) from None
            raise CheckpointError(f"{error} Copy it again.") from error
        for part, kind in settings.items() if file == "model_index.json" else ():
            if isinstance(kind, list) and not part.isidentifier():  # it is the name of a folder
                raise CheckpointError(f'{path}: "{printable(part, 60)}" is no name of a part.')
        return settings

    @contextmanager
    def opening(self, subject: str) -> Iterator[None]:
        """Within the block, whatever a library raises at files that make no sense to it is an error of the folder.

        ``subject``: what is opened, such as "a StableDiffusionPipeline".

        Raises:
            CheckpointError: with the folder and the library's reason. Errors of ours and a lack of memory pass.
        """
        try:
            yield
        except GrpaintError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{self.path}: diffusers cannot open it as {subject}: {describe(error, 300)}"
            ) from error

    def scheduler(
        self, defaults: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, Sequence[object]]
    ) -> dict[str, Any]:
        """The scheduler's settings.

        ``defaults``: for each supported scheduler class, the defaults of keys that the file may leave out;
        ``allowed``: for each key, the values that can be followed.

        Raises:
            ConfigError: if the class is not in ``defaults``, or a setting's value not in ``allowed``.
        """
        settings = self.settings(SCHEDULER)
        name = str(settings.get("_class_name"))
        if name not in defaults:
            raise ConfigError(
                f'{self.path / SCHEDULER}: _class_name = "{name}": this noise schedule is not supported. There are: '
                f"{', '.join(defaults)}. Save the folder's schedule with one of these."
            )
        settings = {**defaults[name], **settings}
        for key, values in allowed.items():
            if key in settings and settings[key] not in values:
                raise ConfigError(
                    f"{self.path / SCHEDULER}: {key} = {json.dumps(settings[key])}: no sampler here can follow that. "
                    f"Set it to {' or '.join(json.dumps(value) for value in values)}, if the model allows it."
                )
        return settings
