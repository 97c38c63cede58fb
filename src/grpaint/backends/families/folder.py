"""A model's settings, read as JSON before any weight is opened."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError

OFF = (False, None)


@dataclass(frozen=True)
class Folder:
    """A local folder in the diffusers layout; ``changes`` are settings that are known better, by their file."""

    path: FilePath
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings(self, file: str) -> dict[str, Any]:
        """The contents of one of its JSON files.

        Raises:
            CheckpointError: where the file is missing or damaged.
        """
        where = self.path / file
        try:
            values = json.loads(where.read_text())
        except FileNotFoundError as error:
            raise CheckpointError(f"{where}: not found. Is {self.path} a folder in the diffusers layout?") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{where}: not a readable JSON file ({error}). Copy it again.") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: settings must be a JSON object, not {type(values).__name__}.")
        return values | dict(self.changes.get(file, {}))

    def scheduler(
        self, known: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, Sequence[object]]
    ) -> dict[str, Any]:
        """The scheduler's settings; ``known`` gives the class defaults of keys that the file may leave out.

        Raises:
            ConfigError: where the class is not in ``known``, or a setting's value not in ``allowed``.
        """
        file = "scheduler/scheduler_config.json"
        settings = self.settings(file)
        name = str(settings.get("_class_name"))
        if name not in known:
            raise ConfigError(
                f'{self.path / file}: _class_name = "{name}": its noise schedule is not read. There are: '
                f"{', '.join(known)}. Save the folder's schedule with one of these."
            )
        settings = {**known[name], **settings}
        for key, values in allowed.items():
            if key in settings and settings[key] not in values:
                raise ConfigError(
                    f"{self.path / file}: {key} = {json.dumps(settings[key])}: no sampler here can follow that. "
                    f"Set it to {' or '.join(json.dumps(value) for value in values)}, if the model allows it."
                )
        return settings
