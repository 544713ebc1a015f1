"""Packages import one way only, and nothing that runs code from files is ever called."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "llmcxr"
ORDER = (
    "foundation",
    "recipes",
    "metrics",
    "studies",
    "labelling",
    "sources",
    "image_tokens",
    "vocabulary",
    "instructions",
    "tasks",
    "model",
    "inference",
    "synthesis",
    "formats",
    "tuning",
    "evaluation",
    "pages",
    "recipe",
    "stages",
    "pipeline",
    "packing",
    "speed",
    "plan",
    "plan_text",
    "commands",
    "cli",
    "__main__",
)
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def faults(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own, found = package_of(path), []
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] in FORBIDDEN_MODULES:
            found.append(f"imports {parts[0]}")
        other = parts[1] if parts[0] == "llmcxr" and len(parts) > 1 and own != "__init__" else own
        if other not in ("__version__", own) and (other not in ORDER or ORDER.index(other) > ORDER.index(own)):
            found.append(f"imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        called = function.id if isinstance(function, ast.Name) else ""
        if called in FORBIDDEN_CALLS:
            found.append(f"line {node.lineno}: calls {called}")
        keywords = {k.arg: k.value for k in node.keywords}
        for name, bad in (
            ("weights_only", False),
            ("trust_remote_code", True),
            ("allow_pickle", True),
            ("shell", True),
        ):
            if name in keywords and not (isinstance(keywords[name], ast.Constant) and keywords[name].value is not bad):
                found.append(f"line {node.lineno}: {name}")
        method = function.attr if isinstance(function, ast.Attribute) else ""
        owner = (
            function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        )
        if (owner, method) == ("torch", "load") and "weights_only" not in keywords:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if (owner, method) in {("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system")}:
            found.append(f"line {node.lineno}: {owner}.{method}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_and_calls(path):
    assert faults(path) == []


def test_every_package_has_its_place():
    assert len(FILES) > 40
    assert {package_of(p) for p in FILES} - {"__init__"} <= set(ORDER)


def test_the_check_finds_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    (tmp_path / "studies").mkdir()
    path = tmp_path / "studies" / "bad.py"
    path.write_text(
        "import pickle\nfrom llmcxr.sources import table\nimport llmcxr.tuning.trainer\nimport torch, yaml\neval('1')\n"
        "torch.load('x')\ntorch.load('x', weights_only=False)\nyaml.load('x')\nf(trust_remote_code=True)\n"
        "from llmcxr.foundation.errors import UserError\ntorch.load('x', weights_only=True)\n"
    )
    assert len(faults(path)) == 8
