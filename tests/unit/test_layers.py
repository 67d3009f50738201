"""The layers of ARCHITECTURE.md: who may import what, and who may ask for the time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "eventproc"

#: Every module or folder directly in eventproc/ has one layer. A new one is put here and in ARCHITECTURE.md.
LAYERS = {
    "leaves": {
        "event",
        "effects",
        "errors",
        "clock",
        "settings",
        "settings_load",
        "metrics",
        "spawn",
        "server_process",
        "forked",
        "logs",
        "marks",
    },
    "core": {"_clock", "_reorder", "_entry", "_intake", "_run"},
    "machine": {
        "asides",
        "breaker",
        "finalizer",
        "gaps",
        "handlers",
        "inflight_ids",
        "intake",
        "lanes",
        "ownership",
        "pipeline",
        "settler",
        "suspects",
    },
    "broker": {"broker"},
    "store": {"store"},
    "programs": {
        "cli",
        "supervisor",
        "worker",
        "preflight",
        "monitor",
        "ingest",
        "listening",
        "audit",
        "workload",
        "keeper",
        "async_runner",
        "calls",
        "crashpoints",
    },
    "front": {"__init__", "__main__"},
}

#: What each layer may import besides itself.
MAY_IMPORT = {
    "leaves": {"core"},
    "core": set[str](),
    "machine": {"leaves", "core"},
    "broker": {"leaves", "core"},
    "store": {"leaves", "core"},
    "programs": {"leaves", "core", "machine", "broker", "store", "front"},
    "front": {"leaves", "core"},
}

#: Client libraries, and the layers that may import them.
CLIENTS = {"confluent_kafka": {"broker"}, "redis": {"store"}}

Import = tuple[str, int]  # dotted name, line


def layer_of(module: str) -> str:
    """The layer of a dotted name such as eventproc.store.keys."""
    parts = module.split(".")
    part = parts[1] if len(parts) > 1 else "__init__"
    for layer, names in LAYERS.items():
        if part in names:
            return layer
    raise AssertionError(f"eventproc/{part} has no layer: name it in LAYERS here and in ARCHITECTURE.md")


def module_name(path: Path) -> str:
    parts = ["eventproc", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".pyi"))


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[Import]:
    """Everything that is imported anywhere in the module, inside functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                # `from eventproc import pipeline` names the module, `from eventproc import Reject` does not.
                name = f"{base}.{alias.name}"
                yield (name if base.split(".")[0] == "eventproc" and exists(name) else base), node.lineno


def parsed(path: Path) -> tuple[ast.Module, str]:
    return ast.parse(path.read_text(encoding="utf-8"), str(path)), module_name(path)


def wrong_imports(tree: ast.AST, module: str, is_package: bool = False) -> list[str]:
    """What breaks the layers, as `line: what`."""
    layer = layer_of(module)
    wrong = []
    for name, line in imports(tree, module, is_package):
        root = name.split(".")[0]
        if root in CLIENTS and layer not in CLIENTS[root]:
            wrong.append(f"{line}: {layer} imports {root}, which only {', '.join(CLIENTS[root])} may")
        if root == "eventproc":
            other = layer_of(name)
            if other != layer and other not in MAY_IMPORT[layer]:
                wrong.append(f"{line}: {layer} imports {name}, which belongs to {other}")
    return wrong


#: Calls that ask for the time; `import time` itself is refused too, so that nothing can alias it.
TIME_CALLS = {
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
}


def asks_for_time(tree: ast.AST) -> list[str]:
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wrong += [f"{node.lineno}: imports time" for alias in node.names if alias.name == "time"]
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            wrong.append(f"{node.lineno}: imports from time")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            owner_name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if (owner_name, node.func.attr) in TIME_CALLS:
                wrong.append(f"{node.lineno}: calls {owner_name}.{node.func.attr}")
    return wrong


def unseeded_randomness(tree: ast.AST) -> list[str]:
    """Calls of the random module's hidden global generator; handing one of them in is fine."""
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "random" and node.func.attr != "Random":
                wrong.append(f"{node.lineno}: calls random.{node.func.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "random":
            wrong += [f"{node.lineno}: imports random.{a.name}" for a in node.names if a.name != "Random"]
    return wrong


FILES = sorted(PACKAGE.rglob("*.py"))
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@by_file
def test_imports_only_what_its_layer_may(path: Path) -> None:
    tree, module = parsed(path)
    assert wrong_imports(tree, module, path.name == "__init__.py") == []


@by_file
def test_only_the_clock_asks_for_the_time(path: Path) -> None:
    tree, module = parsed(path)
    if module == "eventproc.clock":
        assert asks_for_time(tree), "clock.py is where time comes from"
    else:
        assert asks_for_time(tree) == []


@by_file
def test_randomness_is_seeded_and_handed_in(path: Path) -> None:
    assert unseeded_randomness(parsed(path)[0]) == []


def test_leaves_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        tree, module = parsed(path)
        if layer_of(module) == "leaves":
            graph[module] = {
                name for name, _ in imports(tree, module, False) if name.startswith("eventproc.")
            }
    while graph:
        bottom = {module for module, below in graph.items() if not below & graph.keys()}
        assert bottom, f"these import each other: {graph}"
        graph = {module: below for module, below in graph.items() if module not in bottom}


CLOCKS_OF_C = re.compile(r"\bc?import .*\btime\b|\b(posix|libc|cpython)\.time\b|\btime\.h\b")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.p[yx][xd]")), ids=lambda path: path.name)
def test_only_the_clock_asks_c_for_the_time(path: Path) -> None:
    asks = bool(CLOCKS_OF_C.search(path.read_text(encoding="utf-8")))
    assert asks == (path.name == "_clock.pyx")


@pytest.mark.parametrize(
    "source",
    [
        "from posix.time cimport clock_gettime",
        "from posix cimport time",
        "from libc.time cimport time",
        "from libc cimport time",
        "from cpython.time cimport monotonic",
        'cdef extern from "time.h":',
        "import time",
    ],
)
def test_asking_c_for_the_time_is_noticed(source: str) -> None:
    assert CLOCKS_OF_C.search(source)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.pyx")), ids=lambda path: path.name)
def test_an_extension_imports_only_extensions_of_the_core(path: Path) -> None:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    named = {words[1] for words in lines if len(words) > 1 and words[0] in ("import", "from", "cimport")}
    ours = {name for name in named if name.split(".")[0] == "eventproc"}
    assert ours <= {f"eventproc.{name}" for name in LAYERS["core"]}
    assert not named & {"time", "datetime", "socket"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("eventproc.pipeline", "from eventproc.store import keys"),
        ("eventproc.pipeline", "from eventproc import broker"),
        ("eventproc.pipeline", "def f() -> None:\n    import confluent_kafka"),
        ("eventproc.handlers", "import redis.asyncio"),
        ("eventproc.store.scripts", "from ..broker.consumer import Consumer"),
        ("eventproc.store.scripts", "from ..pipeline import Pipeline"),
        ("eventproc.broker.consumer", "import eventproc.worker"),
        ("eventproc.errors", "from eventproc.pipeline import Pipeline"),
        ("eventproc.worker", "from redis import Redis"),
    ],
)
def test_a_forbidden_import_is_noticed(module: str, source: str) -> None:
    assert len(wrong_imports(ast.parse(source), module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("eventproc.pipeline", "from eventproc._reorder import ReorderBuffer"),
        ("eventproc.store.scripts", "from ..effects import Claim"),
        ("eventproc.worker", "from eventproc import broker, pipeline, store"),
        ("eventproc.broker.consumer", "import confluent_kafka"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert wrong_imports(ast.parse(source), module) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time as clock",
        "from time import monotonic",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.utcnow()",
    ],
)
def test_asking_for_the_time_is_noticed(source: str) -> None:
    assert len(asks_for_time(ast.parse(source))) == 1


def test_the_hidden_generator_is_noticed() -> None:
    assert len(unseeded_randomness(ast.parse("import random\nrandom.random()\nrandom.Random(1)"))) == 1
