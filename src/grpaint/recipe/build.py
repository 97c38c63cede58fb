"""Turn TOML tables into the frozen dataclasses that they describe, and back; a dataclass is its own configuration."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tomli_w

from grpaint.core.bounds import Limit
from grpaint.core.errors import ConfigError
from grpaint.core.policy import Reward
from grpaint.core.step import Sampler
from grpaint.core.text import printable
from grpaint.learn.advantage import Advantage
from grpaint.learn.objective import Objective
from grpaint.learn.penalty import Penalty
from grpaint.learn.surrogate import Surrogate
from grpaint.measures.features import Features
from grpaint.recipe import catalog
from grpaint.recipe.pieces import Data, Logger, ModelSpec, Optimizer, WeightedReward
from grpaint.recipe.scalars import check_name, scalar, short
from grpaint.rewards.function import with_metadata
from grpaint.rollout.start import Start
from grpaint.rollout.window import Window

Plain = dict[str, Any]

GROUPS: dict[object, str] = {
    Advantage: "advantages",
    Data: "data",
    Features: "features",
    Logger: "loggers",
    ModelSpec: "models",
    Objective: "objectives",
    Optimizer: "optimizers",
    Penalty: "penalties",
    Reward: "rewards",
    Sampler: "samplers",
    Start: "starts",
    Surrogate: "surrogates",
    Window: "windows",
}
PROTOCOLS = {group: protocol for protocol, group in GROUPS.items()}


def build(hint: Any, value: Any, key: str) -> tuple[Any, Any]:  # noqa: PLR0911 - one line a kind of hint
    """Build ``value`` into the type ``hint``; return it, and its plain form with all defaults for run.toml.

    Raises:
        ConfigError: with the key, the value, the reason and the way out.
    """
    if hint == Limit:
        return (scalar(float, value, key, infinite=True),) * 2
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return build(args[0], value, key)
    if origin in (types.UnionType, typing.Union):
        return (None, None) if value in (None, "none") else build(_not_none(args), value, key)
    if origin is Literal:
        return _one_of(args, value, key), value
    if origin is tuple:
        items = [build(args[0], item, f"{key}[{n}]") for n, item in enumerate(_sized(value, key))]
        return tuple(piece for piece, _ in items), [plain for _, plain in items]
    if origin is dict:
        for name in (table := _table(value, key)):
            check_name(name, key)
        pairs = {name: build(args[1], item, f"{key}.{name}") for name, item in table.items()}
        return {name: piece for name, (piece, _) in pairs.items()}, {name: plain for name, (_, plain) in pairs.items()}
    if hint in GROUPS:
        return _piece(GROUPS[hint], value, key)
    if hint is WeightedReward:
        return _weighted(_table(value, key), key)
    if _is_table(hint):
        table, entry = _table(value, key), catalog.kind_of(hint)
        if entry and table.get("kind") == entry[1]:  # as run.toml had it in 0.1 for a default
            del table["kind"]
        return _dataclass(hint, table, key)
    return (scalar(hint, value, key),) * 2


def _is_table(hint: Any) -> bool:
    """Whether a hint is a dataclass, whose settings are a table without a kind."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _weighted(settings: Plain, key: str) -> tuple[WeightedReward, Plain]:
    """Build a ``[rewards.NAME]`` table: the reward from its own settings, and the settings that every reward has."""
    hints = typing.get_type_hints(WeightedReward)
    common = [field.name for field in dataclasses.fields(WeightedReward) if field.name != "reward"]
    arguments = {n: build(hints[n], settings.pop(n), f"{key}.{n}")[0] for n in common if n in settings}
    reward, plain = _piece("rewards", settings, key)
    try:
        weighted = WeightedReward(reward, **arguments)
    except ValueError as error:
        raise ConfigError(f"{key}.{error}") from error
    values = {name: dump(getattr(weighted, name)) for name in common}
    return weighted, plain | {name: value for name, value in values.items() if value is not None}


def _not_none(args: tuple[Any, ...]) -> Any:
    return next(arg for arg in args if arg is not types.NoneType)


def _one_of(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        hint = catalog.did_you_mean(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
        raise ConfigError(f"{key} = {short(value)}: not a choice.{hint} There are: {', '.join(map(str, choices))}.")
    return value


def _sized(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} = {short(value)}: must be a list, in brackets.")
    return list(value)


def _table(value: Any, key: str) -> Plain:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} = {short(value)}: must be a table of settings.")
    return dict(value)


def _piece(group: str, value: Any, key: str) -> tuple[Any, Any]:
    settings = _table(value, key)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise ConfigError(
            f"{key}.kind is missing: what is not in the recipe is named by its kind first. There are: "
            f"{', '.join(sorted(catalog.CATALOG[group]))}."
        )
    target = catalog.find_piece(group, kind, key)
    if not (isinstance(target, type) and dataclasses.is_dataclass(target)):  # a user's function or plain class
        if settings:
            raise ConfigError(f'{key}.{next(iter(settings))}: "{kind}" is no dataclass and takes no settings.')
        piece = _plain_class(target, f'{key}.kind = "{kind}"') if isinstance(target, type) else target
        piece = with_metadata(piece) if group == "rewards" else piece
        plain: Plain = {}
    else:
        piece, plain = _dataclass(target, settings, key)
    if kind not in catalog.CATALOG[group]:
        _check_protocol(piece, PROTOCOLS[group], f'{key}.kind = "{kind}"')
    return piece, {"kind": kind, **plain}


def _check_protocol(piece: Any, protocol: Any, setting: str) -> None:
    """Refuse a user's own piece that lacks a method of its protocol or takes other arguments."""
    for name, member in vars(protocol).items():
        if not inspect.isfunction(member) or (name.startswith("_") and name != "__call__"):
            continue
        arguments = list(inspect.signature(member).parameters)[1:]
        call = f"{name}({', '.join(arguments)})"
        method = piece if name == "__call__" else getattr(piece, name, None)
        if not callable(method):
            raise ConfigError(
                f"{setting}: it must have {call}, or be a function for a lone __call__; got {piece!r:.60}."
            )
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError as error:
            raise ConfigError(f"{setting}: it is called as {call}: {error}.") from error
        except ValueError:  # a function written in C may have no signature
            continue


def _plain_class(cls: type, setting: str) -> Any:
    try:
        return cls()
    except TypeError as error:
        raise ConfigError(
            f"{setting}: cannot be made without arguments ({error}); settings need a dataclass."
        ) from error


def _dataclass(cls: type, settings: Plain, key: str) -> tuple[Any, Plain]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ConfigError(f"{key}: the annotations of {cls.__name__} cannot be read: {error}.") from error
    if not cls.__module__.startswith("grpaint."):  # a user's own piece decides what infinity means to it
        hints = {name: Limit if hint is float else hint for name, hint in hints.items()}
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    prefix = f"{key}." if key else ""
    for name in sorted(settings.keys() - fields.keys()):
        names = sorted(fields)
        raise ConfigError(
            f"{prefix}{name:.80}: no such setting.{catalog.did_you_mean(name, names)} "
            f"There are: {', '.join(names) or 'none'}."
        )
    arguments, plain = {}, {}
    for name, field in fields.items():
        if name in settings:
            value = _with_kind(settings[name], hints[name], field)
            arguments[name], plain[name] = build(hints[name], value, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name} is missing.")
    try:
        piece = cls(**arguments)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error
    except OSError as error:  # of a path that a setting names: no permission, or a name that is too long
        path = printable(str(error.filename or ""), 80)
        raise ConfigError(f"{key or 'the recipe'}: {path}: {error.strerror or error}.") from error
    for name in fields.keys() - arguments.keys():
        plain[name] = dump(getattr(piece, name))
        if _is_table(hints[name]):
            plain[name].pop("kind", None)  # it can be of no other kind
        if not cls.__module__.startswith("grpaint.") and plain[name] is not None:
            _check_default(hints[name], plain[name], prefix + name)
    return piece, {name: plain[name] for name in fields if plain[name] is not None}


def _check_default(hint: Any, plain: Any, key: str) -> None:
    """Refuse a default of a user's own piece that run.toml cannot hold."""
    try:
        build(hint, plain, key)
        tomli_w.dumps({"value": plain})
    except (ConfigError, TypeError) as error:
        reason = error if isinstance(error, ConfigError) else f"{key} = {plain!r}: {error}."
        raise ConfigError(f"{reason} It is a default that run.toml could not repeat; name it in the recipe.") from error


def _with_kind(value: Any, hint: Any, field: "dataclasses.Field[Any]") -> Any:
    """Add the kind that a field has by default to a piece's settings that name none."""
    if not isinstance(value, Mapping) or "kind" in value or {hint, *typing.get_args(hint)}.isdisjoint(GROUPS):
        return value
    factory = field.default_factory
    default = dump(factory() if factory is not dataclasses.MISSING else field.default)
    return {"kind": default["kind"], **value} if isinstance(default, Mapping) and "kind" in default else value


def dump(value: Any) -> Any:
    """Return the plain values that build a piece of the catalog, its kind first."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entry = catalog.kind_of(type(value))
        fields = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        kind = {"kind": entry[1]} if entry else {}
        return kind | {name: plain for name, plain in fields.items() if plain is not None}
    if isinstance(value, Mapping):
        return {name: dump(item) for name, item in value.items()}
    return [dump(item) for item in value] if isinstance(value, tuple | list) else value
