"""YAML as people write it: a mapping that means one thing, and costs no more to read than it is long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import path_of

_BYTES = 1_000_000  # of a file
_DEPTH = 30  # groups inside each other; recipes have five
_NODES = 20_000  # with what aliases repeat counted each time: ten lines of them can stand for a billion


def _line(part: yaml.Node | yaml.Event) -> int:
    return part.start_mark.line + 1 if part.start_mark is not None else 0


def _check(node: yaml.Node, origin: str) -> None:
    """`UserError` where a mapping has a key twice, or aliases make more of the text than it is long."""
    todo, seen, count = [node], set[int](), 0
    while todo:
        current = todo.pop()
        count += 1
        if count > _NODES:
            raise UserError(f"{origin} stands for more than {_NODES:,} values. Write it without aliases (*name).")
        children: list[yaml.Node] = []
        if isinstance(current, yaml.SequenceNode):
            children = current.value
        elif isinstance(current, yaml.MappingNode):
            children = [part for pair in current.value for part in pair]
            if id(current) not in seen:
                lines: dict[tuple[str, str], int] = {}
                for key, _ in current.value:
                    name, line = (key.tag, str(key.value)), _line(key)
                    if name in lines:
                        raise UserError(
                            f"{origin} has {key.value} twice, in lines {lines[name]} and {line}. Keep one of them."
                        )
                    lines[name] = line
        seen.add(id(current))
        todo += children


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text, by the safe loader; `origin` is what errors call it.

    `UserError` where it is not valid YAML, a key stands twice in a mapping, or it is nested or repeated beyond what
    settings need.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                raise UserError(f"{origin}, line {_line(event)}: more than {_DEPTH} groups in each other.")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, origin)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # the latter: dates and numbers that are none
        raise UserError(f"{origin} is not valid YAML: {error}") from error


def read_yaml(path: Path) -> Any:
    """The value of a YAML file. `UserError` as `parse_yaml`, and where the file cannot be read."""
    path = path_of(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be read: it is no file. Give a YAML file.")
        if path.stat().st_size > _BYTES:
            raise UserError(f"{path} has more than {_BYTES:,} bytes: it is no file of settings. Give a YAML file.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Give a YAML file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Give a YAML file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    return parse_yaml(text, str(path))
