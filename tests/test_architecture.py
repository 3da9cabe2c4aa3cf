"""
The house keeps its own law: floors, front door, laws on the doors, sizes.

``FLOORS`` is the map; ``docs/architecture.md`` says the same to a reader. A new
room fails here until somebody has decided its floor and written it down in both.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eventbus

FLOORS = {
    "__init__": 24,
    "__main__": 24,
    "pytest_plugin": 24,
    "testing": 23,
    "_bus": 22,
    "_replaying": 21,
    "_delaying": 20,
    "_due": 19,
    "_redriving": 18,
    "_running": 17,
    "_storing": 16,
    "_consumers": 15,
    "_durable_keeping": 15,
    "_outlook": 15,
    "_consumer": 14,
    "_filling": 13,
    "_hearing": 12,
    "_postponed": 12,
    "_wiring": 12,
    "_ending": 11,
    "_keeping": 11,
    "_log_queue": 11,
    "_workers": 11,
    "_intake": 10,
    "_books": 9,
    "_queue": 9,
    "_behind": 8,
    "_commitment": 8,
    "_desk": 8,
    "_entanglement": 8,
    "_log_reader": 8,
    "_backlog": 7,
    "_delivery": 7,
    "_entry": 7,
    "_insight": 7,
    "_staff": 7,
    "projection": 7,
    "_claims": 6,
    "_gauge": 6,
    "_job": 6,
    "_publisher": 6,
    "_replaceable": 6,
    "_write_off": 6,
    "replay": 6,
    "sourcing": 6,
    "_cli": 5,
    "_dispatch": 5,
    "_furnishing": 5,
    "_playback": 5,
    "_publisher_keys": 5,
    "_routing": 5,
    "_tenure": 5,
    "_verdict": 5,
    "_attempt": 4,
    "_folding": 4,
    "_furniture": 4,
    "_log_writer": 4,
    "_registry": 4,
    "_route": 4,
    "_stored_letters": 4,
    "memory": 4,
    "sqlite": 4,
    "store": 4,
    "_deferred": 3,
    "_holder": 3,
    "_marks": 3,
    "_records": 3,
    "_snapshots": 3,
    "_subscription": 3,
    "progress": 3,
    "_following": 2,
    "_options": 2,
    "_receipt": 2,
    "_scratch": 2,
    "codec": 2,
    "kept_letters": 2,
    "_abort": 1,
    "_alarms": 1,
    "_event": 1,
    "_gate": 1,
    "_handler_connection": 1,
    "_loop_thread": 1,
    "_process": 1,
    "_signature": 1,
    "dead_letter": 1,
    "event_log": 1,
    "idempotency": 1,
    "instrumentation": 1,
    "_begun": 0,
    "_beside": 0,
    "_clock": 0,
    "_envelope": 0,
    "_fork": 0,
    "_held": 0,
    "_logger": 0,
    "_mode": 0,
    "_offload": 0,
    "_owner": 0,
    "_story": 0,
    "_unreadable": 0,
    "errors": 0,
    "retry": 0,
}

LONGEST_FUNCTION = 40
LONGEST_FILE = 400
SLOW_TO_IMPORT = {"asyncio", "cattrs", "logging", "sqlite3"}

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "eventbus"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(HOUSE.rglob("*.py"))
}
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef

every_module = pytest.mark.parametrize("module", MODULES)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(module: str) -> str:
    """
    Name the room a module belongs to: ``eventbus.testing._recorder`` is in ``testing``.
    """
    _, _, inside = module.partition(".")
    return inside.partition(".")[0] or "__init__"


def imports_of(module: str) -> Iterator[tuple[int, str]]:
    """
    Yield line and target of each import of ours, wherever in the module it stands.
    """
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.stmt | ast.expr):
            for target in targets_of(node, module):
                if target.partition(".")[0] == "eventbus":
                    yield node.lineno, target


def targets_of(node: ast.stmt | ast.expr, module: str) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom():
            source = source_of(node, module)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in MODULES else source
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield name


def source_of(node: ast.ImportFrom, module: str) -> str:
    """
    Spell out what follows ``from``, dots included.
    """
    if not node.level:
        return node.module or ""
    package = module.split(".")
    if MODULES[module].name != "__init__.py":
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)


def functions_of(path: Path) -> Iterator[Function]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, Function):
            yield node


def length_of(function: Function) -> int:
    """
    Count the lines of a function's body: neither its signature nor its docstring is code.
    """
    first = 0 if ast.get_docstring(function) is None else 1
    body = function.body[first:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def modules_after(statement: str) -> set[str]:
    """
    Run a statement in a fresh interpreter and return what it has imported.
    """
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    # A measured suite would measure its child too, and so import sqlite3 for it.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }
    child = subprocess.run(
        [sys.executable, "-I", "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return set(child.stdout.split())


def floors_in_the_docs() -> dict[str, int]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| *(\d+) *\|([^|]+)\|", page, flags=re.MULTILINE)
    return {room: int(floor) for floor, cell in rows for room in re.findall(r"`(\w+)`", cell)}


def test_every_room_has_a_floor():
    """
    A room nobody has put on the map is refused.
    """
    unknown = {room_of(module) for module in MODULES} - set(FLOORS)
    assert set() == unknown, (
        f"no floor for {sorted(unknown)}: decide it in FLOORS and in docs/architecture.md"
    )


def test_every_floor_is_lived_on():
    """
    The map names no room that is not built.
    """
    missing = set(FLOORS) - {room_of(module) for module in MODULES}
    assert set() == missing, f"on the map, but not in eventbus/: {sorted(missing)}"


def test_the_docs_show_the_same_house():
    """
    The table of floors in the docs is the table of floors of this test.
    """
    assert floors_in_the_docs() == FLOORS


@every_module
def test_imports_go_only_down(module: str):
    """
    A room imports only from floors strictly below its own, late and type-only imports included.
    """
    room = room_of(module)
    upwards = [
        f"{MODULES[module].name}:{line} imports {target}: "
        f"from floor {FLOORS.get(room)} to floor {FLOORS.get(room_of(target))}"
        for line, target in imports_of(module)
        if room_of(target) != room and FLOORS.get(room_of(target), 99) >= FLOORS.get(room, -1)
    ]
    assert [] == upwards


def test_no_module_imports_itself_in_a_circle():
    """
    There is no import cycle, between rooms or within one.
    """
    graph = {module: {target for _, target in imports_of(module)} for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(MODULES) <= set(order)


@every_module
def test_every_door_has_a_law(module: str):
    """
    A module opens with what lives there, said in a docstring with its quotes on their own lines.
    """
    source = MODULES[module].read_text(encoding="utf-8")
    assert source.startswith('"""\n'), f"{module} does not open with a docstring"
    first, _, law = source.removeprefix('"""\n').partition('"""')[0].partition("\n")
    assert first.endswith("."), f"the first line of {module} is no sentence"
    assert law.strip(), f"{module} says what it is, but not what must and must not live there"


@every_module
def test_files_are_short(module: str):
    """
    A file is read in one sitting.
    """
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{module} has {lines} lines: which part is a room of its own?"


@every_module
def test_functions_are_short(module: str):
    """
    A function fits on a screen.
    """
    long = [
        f"{MODULES[module].name}:{function.lineno} {function.name} has {length_of(function)} lines"
        for function in functions_of(MODULES[module])
        if length_of(function) > LONGEST_FUNCTION
    ]
    assert [] == long


def test_the_front_door_is_a_sorted_list():
    """
    ``__all__`` is sorted, names nothing twice, and is what the front door imports.
    """
    front = tree_of(HOUSE / "__init__.py")
    imported = {
        alias.asname or alias.name
        for node in ast.walk(front)
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert sorted(imported) == list(eventbus.__all__)


def test_every_public_name_is_importable():
    """
    Each name in ``__all__`` can be imported from the front door.
    """
    front = importlib.import_module("eventbus")
    assert [] == [name for name in front.__all__ if not hasattr(front, name)]


def test_nothing_runs_at_the_front_door():
    """
    The front door holds a docstring, imports and names, and no code.
    """
    running = [
        f"__init__.py:{node.lineno}"
        for node in tree_of(HOUSE / "__init__.py").body[1:]
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Constant))
    ]
    assert [] == running


def test_importing_the_library_stays_quick():
    """
    ``import eventbus`` imports nothing slow that ``import attrs`` does not.
    """
    ours = modules_after("import eventbus") - modules_after("import attrs")
    assert "eventbus._bus" in ours
    assert set() == ours & SLOW_TO_IMPORT


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_every_test_says_what_it_shows(path: Path):
    """
    Each test has a docstring that states the behaviour it shows.
    """
    silent = [
        f"{path.name}:{function.lineno} {function.name}"
        for function in functions_of(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert [] == silent
