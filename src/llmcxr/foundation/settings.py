"""Typed settings: one frozen dataclass a component, filled from YAML, `key.sub=value` overrides, or Python.

Each setting is defined once, with `setting(default, "help")`, where it is used; help texts, YAML, the command line and
the saved recipe all come from that definition. What it can be stands in its type (`Annotated[int, Range(1, 64)]`, or
one of the names below), and is checked when the object is made, from wherever.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.yaml_text import parse_yaml, read_yaml

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting can be: from `low` to `high`, both included unless said otherwise."""

    low: float
    high: float
    above: bool = False  # `low` itself is left out
    below: bool = False  # `high` itself is left out

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = (f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in (self.low, self.high))
        return f"{f'above {low}, up' if self.above else low} to {'below ' * self.below}{high}"


HOME = "a name, or a path in which ~ is home"

# Upper ends are what nobody means: a slip of the keyboard should not run for years.
Count = Annotated[int, Range(1, 10_000_000)]
Number = Annotated[int, Range(0, 10_000_000)]  # of what may be none
Share = Annotated[float, Range(0, 1)]
ShareBelowAll = Annotated[float, Range(0, 1, below=True)]
Weight = Annotated[float, Range(0, 1_000_000)]
LearningRate = Annotated[float, Range(0, 1, above=True)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Precision = Literal["auto", "float32", "bfloat16"]
NameOrPath = Annotated[str, HOME]


def setting(default: Any, about: str) -> Any:
    """A dataclass field with a default (lists and dataclasses are copied) and its one-line help."""
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata={"about": about})
    if dataclasses.is_dataclass(default):  # frozen, so it can be shared
        return dataclasses.field(default_factory=lambda: default, metadata={"about": about})
    return dataclasses.field(default=default, metadata={"about": about})


class SettingsError(UserError):
    """Faults of a group of settings, one a line."""

    def __init__(self, origin: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        lines = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(f"{origin} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n{lines}")


class Settings:
    """Base of every group of settings, a frozen dataclass. It checks itself when it is made: `SettingsError` names
    every fault."""

    def __post_init__(self) -> None:
        found: list[str] = []
        for name, value in _checked(type(self), vars(self), "", found).items():
            object.__setattr__(self, name, value)
        if found := found or self.faults():
            raise SettingsError(type(self).__name__, found)

    def faults(self) -> list[str]:
        """Impossible combinations of values that are each possible."""
        return []


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more than 4,300 digits
        text = "a number that long"
    return text if len(text) <= 100 else f"{text[:100]}..."


_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", Path: "a path"}


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return ", ".join([_type_name(arguments[0]), *(str(a) for a in arguments[1:] if isinstance(a, Range))])
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (list, tuple):
        return f"a list, each {_type_name(arguments[0])}"
    if origin is dict:
        return f"a mapping, each value {_type_name(arguments[1])}"
    return _WORDS.get(kind, str(kind))


class _UnfitError(ValueError):
    """Why a value is not what it should be, where that is not plain to see."""


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _UnfitError("it holds half a character") from error
    if "\0" in value:
        raise _UnfitError("it holds a zero byte")
    return value


def _plain(kind: type, value: Any) -> Any:
    """`value` as a number, text, path or truth value of `kind`. ValueError where it is none."""
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
    elif kind is int and isinstance(value, numbers.Integral):
        return int(value)
    elif kind is float and isinstance(value, numbers.Real | str):  # YAML reads 1e-3 as text
        if math.isfinite(number := float(value)):
            return number
    elif kind is str and isinstance(value, str):
        return _text(value)
    elif kind is Path and isinstance(value, str | Path):
        try:
            return Path(_text(str(value))).expanduser()
        except RuntimeError as error:
            raise _UnfitError("~ is home; that of this user is not known") from error
    raise ValueError


def _convert(kind: Any, value: Any, key: str, faults: list[str]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        before = len(faults)
        result = _convert(arguments[0], value, key, faults)
        if len(faults) > before:
            if any(isinstance(a, Range) for a in arguments):  # say the whole of what it should be
                faults[before:] = [f"{key}: {_shown(value)} should be {_type_name(kind)}"]
            return value
        for allowed in arguments[1:]:
            if isinstance(allowed, Range) and result not in allowed:
                faults.append(f"{key}: {_shown(value)} should be {allowed}")
            elif allowed is HOME and result.startswith("~"):
                result = str(_convert(Path, result, key, faults))
        return result
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        trials: list[list[str]] = []
        for option in (a for a in arguments if a is not type(None)):
            trial: list[str] = []
            result = _convert(option, value, key, trial)
            if not trial:
                return result
            trials.append(trial)
        faults.extend(trials[min(range(len(trials)), key=lambda k: len(trials[k]))])
        return value
    if isinstance(kind, type) and issubclass(kind, Settings):
        return _build(kind, value, key, faults)
    if dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind} should derive from Settings")
    if origin is typing.Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        close = difflib.get_close_matches(_shown(value).strip("'"), [str(a) for a in arguments], 1)
        faults.append(
            f"{key}: {_shown(value)} is not {_type_name(kind)}" + (f"; did you mean {close[0]!r}?" if close else "")
        )
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(_convert(arguments[0], item, f"{key}[{i}]", faults) for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {name: _convert(arguments[1], item, at, faults) for name, item, at in _items(value, key, faults)}
    why = ""
    try:
        if origin is None:
            return _plain(kind, value)
    except _UnfitError as error:
        why = f" ({error})"
    except (ValueError, OverflowError):
        pass
    faults.append(f"{key}: {_shown(value)} should be {_type_name(kind)}{why}")
    return value


def _items(value: Mapping[Any, Any], key: str, faults: list[str]) -> list[tuple[str, Any, str]]:
    """(name, value, key in messages) of a mapping whose keys are words or whole numbers."""
    names: dict[str, Any] = {}
    for name, item in value.items():
        if not isinstance(name, str | int) or isinstance(name, bool):  # YAML 1.1 reads no and yes as false and true
            faults.append(f"{key}: the name {name!r} is not text; put what you mean in quotes, e.g. 'no'")
        elif str(name) in names:
            faults.append(f"{key}.{name}: is there twice, as a number and as text")
        else:
            names[str(name)] = item
    return [(name, item, f"{key}.{name}") for name, item in names.items()]


def _checked(cls: type, values: Mapping[str, Any], label: str, faults: list[str]) -> dict[str, Any]:
    hints = _hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return {n: _convert(hints[n], values[n], f"{label}{n}", faults) for n in names if n in values}


def _build(cls: type, values: Any, prefix: str, faults: list[str]) -> Any:
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        faults.append(f"{prefix and f'{prefix}: '}should be a mapping of settings, is {_shown(values)}")
        return None
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [f.name for f in fields]
    label = f"{prefix}." if prefix else ""
    before = len(faults)
    for name in values:
        if name not in names:
            name = _shown(name).strip("'")
            close = difflib.get_close_matches(name, names, 1)
            known = f"did you mean {label}{close[0]}?" if close else f"settings here: {', '.join(names)}"
            faults.append(f"{label}{name}: no such setting; {known}")
    arguments = _checked(cls, values, label, faults)
    for f in fields:
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            faults.append(f"{label}{f.name}: is required ({f.metadata.get('about', 'no default')})")
    if len(faults) > before:
        return None
    try:
        return cls(**arguments)
    except SettingsError as error:
        faults.extend(f"{label}{fault}" for fault in error.faults)
        return None


def build_settings(cls: type[T], values: Mapping[str, Any], origin: str = "the settings") -> T:
    """Make a settings object from nested mappings.

    Unknown names, wrong types, values out of range and whatever each class reports through `faults()` (impossible
    combinations of values that are each possible) are collected and raised together as one `SettingsError`.
    """
    faults: list[str] = []
    result = _build(cls, values, "", faults)
    if faults:
        raise SettingsError(origin, faults)
    return typing.cast(T, result)


def checked(kind: Any, value: Any, name: str) -> Any:
    """One value that is no field of settings, by the same rules: `value` as `kind`, or a `UserError` that calls it
    `name`."""
    faults: list[str] = []
    result = _convert(kind, value, name, faults)
    if faults:
        raise UserError(f"{'; '.join(faults)}.")
    return result


def load_settings(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML), and build `cls`."""
    values = read_yaml(path)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold a mapping of settings, not a {type(values).__name__}.")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {_shown(override)} should look like key.sub=value.")
        value = parse_yaml(text, f"override {_shown(override)}: the value")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"override {_shown(override)}: {parent} is not a group of settings.")
        target[last] = value
    return build_settings(cls, values, str(path))


def settings_to_dict(value: Any) -> Any:
    """Settings as plain YAML-able values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: settings_to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [settings_to_dict(item) for item in value]
    if isinstance(value, dict):
        return {k: settings_to_dict(item) for k, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _allowed(kind: Any) -> list[str]:
    """What values of a type can be, where it says more than the type."""
    if isinstance(kind, Range):
        return [str(kind)]
    if typing.get_origin(kind) is typing.Literal:
        return [" | ".join(map(str, typing.get_args(kind)))]
    return [text for inner in typing.get_args(kind) for text in _allowed(inner)]


def describe_settings(cls: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, help with what it can be) of every setting, in order, for help texts and docs."""
    rows = []
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind = _hints(cls)[f.name]
        inner = [a for a in (kind, *typing.get_args(kind)) if isinstance(a, type) and issubclass(a, Settings)]
        rows_inner = [row for option in inner for row in describe_settings(option, f"{prefix}{f.name}.")]
        if rows_inner:
            rows.extend(rows_inner)
            continue
        default = (
            f.default
            if f.default is not dataclasses.MISSING
            else (f.default_factory() if f.default_factory is not dataclasses.MISSING else "required")
        )
        about, allowed = f.metadata.get("about", ""), "; ".join(_allowed(kind))
        rows.append((f"{prefix}{f.name}", str(settings_to_dict(default)), f"{about} [{allowed}]" if allowed else about))
    return rows
