"""The documents name every file of the package once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from llmcxr.studies.views import VIEWS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "llmcxr"
FILES = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if not p.name.startswith("__")}


def test_the_tree_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named: Counter[str] = Counter()
    folders: list[str] = []
    for line in text.split("```\nsrc/llmcxr/\n")[1].split("\n```")[0].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2 - 1] if indent else []
        if name.endswith("/"):
            folders.append(name)
        elif indent and name.endswith(".py"):
            named["".join(folders) + name] += 1
    assert named == Counter(FILES)


def test_the_packages_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named: Counter[str] = Counter()
    for line in text.split("## One direction")[1].split("## Data flow")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        names = re.findall(r"`([^`]+)`", cells[0]) if cells else []
        if len(names) == 1:
            folder = names[0] + "/"
            for name in re.findall(r"`([^`]+)`", cells[2]):
                if name == "phantom/":
                    folder += name
                elif name != "data/":
                    named[f"{folder}{name}.py"] += 1
        named.update(name for name in names if name.endswith(".py"))
    assert named == Counter(FILES)


def test_the_views_in_the_data_page():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("### Views")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `([A-Z]+)` \| (.+) \|$", text, re.MULTILINE))
    assert shown == {name: ", ".join(spellings) for name, spellings in VIEWS.items()}
