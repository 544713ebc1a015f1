"""Typed settings: one frozen dataclass a component, filled from YAML and `key.sub=value` overrides.

Each setting is defined once, with `setting(default, "help")`, where it is used; help texts, YAML, the command line and
the saved recipe all come from that definition.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llmcxr.foundation.errors import UserError

T = TypeVar("T")


def setting(default: Any, about: str) -> Any:
    """A dataclass field with a default (lists and dataclasses are copied) and its one-line help."""
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata={"about": about})
    if dataclasses.is_dataclass(default):  # frozen, so it can be shared
        return dataclasses.field(default_factory=lambda: default, metadata={"about": about})
    return dataclasses.field(default=default, metadata={"about": about})


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in typing.get_args(kind))
    return getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind).replace("typing.", "")


def _convert(kind: Any, value: Any, key: str, faults: list[str]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
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
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, key, faults)
    if origin is typing.Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        close = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1)
        faults.append(
            f"{key}: {value!r} is not {_type_name(kind)}" + (f"; did you mean {close[0]!r}?" if close else "")
        )
        return value
    if origin is list or origin is tuple:
        if isinstance(value, list | tuple):
            items = [_convert(arguments[0], item, f"{key}[{i}]", faults) for i, item in enumerate(value)]
            return items if origin is list else tuple(items)
    elif origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _convert(arguments[1], item, f"{key}.{k}", faults) for k, item in value.items()}
    elif kind is float:
        if isinstance(value, str):  # YAML reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                pass
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    faults.append(f"{key}: {value!r} should be {_type_name(kind)}")
    return value


def _build(cls: type, values: Any, prefix: str, faults: list[str]) -> Any:
    if dataclasses.is_dataclass(values) and isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        faults.append(f"{prefix or 'the recipe'}: should be a mapping of settings, is {values!r}")
        return None
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    label = f"{prefix}." if prefix else ""
    before = len(faults)
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            known = f"did you mean {label}{close[0]}?" if close else f"settings here: {', '.join(names)}"
            faults.append(f"{label}{name}: no such setting; {known}")
    arguments = {n: _convert(hints[n], values[n], f"{label}{n}", faults) for n in names if n in values}
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            faults.append(f"{label}{f.name}: is required ({f.metadata.get('about', 'no default')})")
    if len(faults) > before:
        return None
    result = cls(**arguments)
    check = getattr(result, "faults", None)
    if check is not None:
        faults.extend(f"{label}{fault}" for fault in check())
    return result


def build_settings(cls: type[T], values: Mapping[str, Any], origin: str = "the settings") -> T:
    """Make a settings object from nested mappings.

    Unknown names, wrong types and whatever each settings class reports through an optional `faults()` method
    (impossible combinations) are collected and raised together as one `UserError`.
    """
    faults: list[str] = []
    result = _build(cls, values, "", faults)
    if faults:
        raise UserError(
            f"{origin} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(f"  - {f}" for f in faults)
        )
    return typing.cast(T, result)


def load_settings(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML), and build `cls`."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Give a YAML file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Give a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold a mapping of settings, not a {type(values).__name__}.")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r} should look like key.sub=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from error
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"override {override!r}: {parent} is not a group of settings.")
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


def describe_settings(cls: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, help) of every setting, in order, for help texts and docs."""
    rows = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        inner = [a for a in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(a)]
        rows_inner = [
            row for option in inner for row in describe_settings(typing.cast(type, option), f"{prefix}{f.name}.")
        ]
        if rows_inner:
            rows.extend(rows_inner)
            continue
        default = (
            f.default
            if f.default is not dataclasses.MISSING
            else (f.default_factory() if f.default_factory is not dataclasses.MISSING else "required")
        )
        rows.append((f"{prefix}{f.name}", str(settings_to_dict(default)), f.metadata.get("about", "")))
    return rows
