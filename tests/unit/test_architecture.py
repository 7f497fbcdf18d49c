"""The floors of docs/architecture.md: a module imports from its own floor or from below, and there are no circles."""

import ast
import configparser
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gcvideo"

# The longest prefix decides.
FLOORS = {
    "gcvideo": 0,
    "gcvideo.layers": 1,
    "gcvideo.video": 1,
    "gcvideo.models": 2,
    "gcvideo.weights": 2,
    "gcvideo.data": 2,
    "gcvideo.prepare": 3,
    "gcvideo.train": 3,
    "gcvideo.eval": 3,
    "gcvideo.predict": 3,
    "gcvideo.analysis": 4,
    "gcvideo.benchmark": 4,
    "gcvideo.report": 4,
    "gcvideo.fit": 5,
    "gcvideo.commands": 6,
    "gcvideo.cli": 6,
    "gcvideo.__main__": 6,
}
# Rooms that must not know each other, whatever their floors.
STRANGERS = [
    ("gcvideo.data", "gcvideo.models"),
    ("gcvideo.data", "gcvideo.layers"),
    ("gcvideo.models", "gcvideo.data"),
    ("gcvideo.layers", "gcvideo.config"),
    ("gcvideo.video", "gcvideo.data"),
    ("gcvideo.video", "gcvideo.config"),
]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports when it is imported itself, or at any time later."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    known = modules()
    return {name if name in known else name.rpartition(".")[0] for name in names if name.split(".")[0] == "gcvideo"}


def floor(module: str) -> int:
    prefix = module
    while prefix not in FLOORS:
        prefix = prefix.rpartition(".")[0]
    return FLOORS[prefix]


@pytest.mark.parametrize("module", [name for name in modules() if name != "gcvideo"])
def test_imports_come_from_the_same_floor_or_below(module):
    above = {other for other in imports(modules()[module]) if floor(other) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports from above: {sorted(above)}"


@pytest.mark.parametrize(("room", "stranger"), STRANGERS)
def test_rooms_that_must_not_know_each_other(room, stranger):
    for module, path in modules().items():
        if module.startswith(room):
            assert not [other for other in imports(path) if other.startswith(stranger)], module


def test_no_circles():
    graph = {name: imports(path) - {name, "gcvideo"} for name, path in modules().items() if name != "gcvideo"}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 350


def test_rooms_hold_at_most_twelve_files():
    rooms: dict[Path, int] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            rooms[path.parent] = rooms.get(path.parent, 0) + 1
    assert not {str(room): files for room, files in rooms.items() if files > 12}


def test_an_installation_has_every_file() -> None:
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    packages = {PACKAGE.parent / name.replace(".", "/"): name for name in setup["options"]["packages"].split()}
    data = {name: patterns.replace(",", " ").split() for name, patterns in setup["options.package_data"].items()}
    for file in PACKAGE.rglob("*"):
        if file.is_dir() or "__pycache__" in file.parts:
            continue
        if file.suffix == ".py":
            assert file.parent in packages, f"setup.cfg: options.packages lacks the folder of {file}"
        else:
            room = next(parent for parent in file.parents if parent in packages)
            assert any(file in room.glob(pattern) for pattern in data.get(packages[room], ())), f"package_data: {file}"
