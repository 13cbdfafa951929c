"""The shape of the project: who may import whom, how long a file is, what is never imported."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("amc", "envs", "agents", "scripts")
"""Each may import itself and those before it."""
LONGEST = 400
EXTRAS = {
    "botorch",
    "gpytorch",
    "pycocotools",
    "ray",
    "faiss",
    "kymatio",
    "ai_edge_litert",
    "litert_torch",
    "timm",
    "datasets",
    "onnxscript",
}

FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Top-level packages that import statements name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def module_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run when the module is imported, those inside `with`, `if` and `try` included."""
    pending, found = list(tree.body), []
    while pending:
        node = pending.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [
                child for child in ast.walk(node) if child is not node and isinstance(child, ast.stmt)
            ]
    return found


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_all_rooms_are_there():
    assert {Path(name).parts[0] for name in NAMES} == set(ROOMS)


@pytest.mark.parametrize(("path", "name"), zip(FILES, NAMES, strict=True), ids=NAMES)
def test_nothing_points_back_up(path, name):
    above = ROOMS[ROOMS.index(Path(name).parts[0]) + 1 :]
    assert imports(ast.walk(parsed(path))) & set(above) == set()


def test_no_file_is_long():
    lengths = {name: len(path.read_text().splitlines()) for path, name in zip(FILES, NAMES, strict=True)}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_torchvision_is_imported_nowhere():
    everywhere = [*FILES, *(ROOT / "tests").rglob("*.py")]
    assert [path.name for path in everywhere if "torchvision" in imports(ast.walk(parsed(path)))] == []


def test_extras_are_imported_only_inside_functions():
    eager = {
        name: imports(module_level(parsed(path))) & EXTRAS for path, name in zip(FILES, NAMES, strict=True)
    }
    assert {name: found for name, found in eager.items() if found} == {}


def test_every_import_is_declared():
    """What a module imports when it is loaded is a core dependency."""
    block = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("\n]")[0]
    packages = {name.replace("-", "_") for name in re.findall(r'"([a-z0-9-]+)', block)}
    aliases = {"scikit_learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
    known = {aliases.get(package, package) for package in packages} | set(ROOMS)
    known |= {"typing_extensions", *sys.stdlib_module_names}  # the first is declared by torch
    used = set().union(*(imports(module_level(parsed(path))) for path in FILES))
    assert used - known == set()


def test_only_the_groups_touch_torch_pruning():
    users = [
        n for n, path in zip(NAMES, FILES, strict=True) if "torch_pruning" in imports(ast.walk(parsed(path)))
    ]
    assert users == ["amc/groups.py"]


def test_environments_know_no_agent_library_and_the_core_neither():
    learners = {"stable_baselines3"}
    for path, name in zip(FILES, NAMES, strict=True):
        room = Path(name).parts[0]
        forbidden = {"amc": learners | {"gymnasium"}, "envs": learners}.get(room, set())
        assert not imports(ast.walk(parsed(path))) & forbidden, name
