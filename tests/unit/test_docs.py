"""The README and docs/tuning.md say what is so: settings, metrics, exit codes, targets, commands, links."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from eventproc import errors
from eventproc.clock import SystemClock
from eventproc.ingest.meters import Levels, Meters
from eventproc.metrics import STATES, Board
from eventproc.monitor.collector import BoardCollector
from eventproc.settings import Settings
from scripts.settings_table import between, main, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
TUNING = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_in(text: str) -> list[str]:
    """What stands in code: fenced blocks line by line, and `inline` spans."""
    return [
        piece
        for block, inline in re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
        for piece in (block.splitlines() if block else [inline])
    ]


CODE = code_in(README)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def help_of(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command's --help says; wide, so that no flag is broken over two lines."""
    module, _, function = SCRIPTS[name].partition(":")
    program = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    return subprocess.run(
        [sys.executable, "-c", program, *words, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def named_commands() -> Iterator[tuple[str, ...]]:
    """Every command line in the README, as words from the program's name on."""
    for code in CODE:
        words = code.replace("[", " ").replace("]", " ").split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words and words[0] in SCRIPTS:
            yield tuple(words)


def test_the_settings_table_is_the_generated_one() -> None:
    assert between(README) == table(), "run `make docs`"


def test_the_table_has_every_setting_and_its_help() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", table(), re.MULTILINE))
    assert list(rows) == list(Settings.model_fields)


def test_make_docs_rewrites_only_what_is_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(README.replace(table(), "| old |"), encoding="utf-8")
    assert main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == README


def test_a_file_without_markers_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    path.write_text("nothing here", encoding="utf-8")
    assert main([str(path)]) == 1
    assert "has no markers" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "nothing here"


def test_every_setting_that_is_named_exists() -> None:
    named = {code for code in CODE if re.fullmatch(r"[a-z]+(_[a-z]+)+", code)}
    elsewhere = {"user_id", "rate_limited"}  # of Event, and of the API's answers
    elsewhere |= {"id_conflict", "seq_jump"}  # reasons of dead letters
    named = {code for code in named if not code.startswith("eventproc_")}
    assert named
    assert named - elsewhere - Settings.model_fields.keys() == set()


def exposed() -> set[str]:
    """Every metric that /metrics has, by the names that queries use."""
    board = Board.create(1)
    try:
        board.page(0).beat(1)
        families = list(BoardCollector(board, [0], SystemClock()).collect())
    finally:
        board.close()
    meters = Meters()
    meters.watch(
        cast(Levels, SimpleNamespace(backlog=0, queued=0, held_bytes=0, kafka_error="", redis_error=""))
    )
    families += meters.registry.collect()
    suffix = {"counter": "_total", "info": "_info"}
    return {family.name + suffix.get(family.type, "") for family in families}


def test_every_metric_that_is_named_exists() -> None:
    named = {name for code in CODE for name in re.findall(r"eventproc_\w+", code)}
    assert named
    assert named - exposed() == set()


def test_tuning_explains_every_metric_and_no_other() -> None:
    rows = "".join(re.findall(r"^\| (`eventproc_.+?) \|", TUNING, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == exposed()
    named = {name for code in code_in(TUNING) for name in re.findall(r"eventproc_\w+", code)}
    assert named <= exposed()


def test_tuning_names_only_settings_that_exist() -> None:
    """Bold is what is recommended; in code, whatever looks like a setting."""
    elsewhere = {"finalize_events", "acquire_events"}  # scripts
    words = {re.split(r"[ =]", code)[0] for code in code_in(TUNING)}
    named = {word for word in words if re.fullmatch(r"[a-z]+(_[a-z]+)+", word)}
    named = {word for word in named if not word.startswith("eventproc_")}
    assert len(named) > 20
    assert named - elsewhere - Settings.model_fields.keys() == set()


def test_the_values_that_tuning_sets_are_valid() -> None:
    chosen = [code for code in code_in(TUNING) if re.fullmatch(r"\w+ = \S+", code)]
    assert chosen
    for assignment in chosen:
        assert Settings(**tomllib.loads(assignment))


def test_the_defaults_that_tuning_tells_are_the_defaults() -> None:
    told = re.findall(r"`(\w+)`(?:\*\*)? \((\d[\d,]*|true|false)[,)]", TUNING)
    assert len(told) > 10
    for name, value in told:
        assert str(Settings.model_fields[name].default).lower() == value.replace(",", ""), name


def test_every_state_is_explained() -> None:
    assert set(STATES) <= set(re.findall(r"^\| `(\w+)` \| ", README, re.MULTILINE))


def test_the_example_configuration_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert Settings(**tomllib.loads(example)).kafka_topic == "events"


def test_every_make_target_that_is_named_exists() -> None:
    named = {match for code in CODE for match in re.findall(r"^make ([a-z-]+)", code)}
    assert {"demo", "test"} <= named <= targets()


def test_make_help_lists_every_target() -> None:
    described = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert described == targets()


COMMANDS = sorted(set(named_commands()))


def test_the_readme_names_every_program() -> None:
    assert {line[0] for line in COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("line", COMMANDS, ids=" ".join)
def test_every_command_that_is_named_exists(line: tuple[str, ...]) -> None:
    words = list(takewhile(lambda word: not word.startswith("-"), line))
    flags = [word for word in line if word.startswith("--")]
    help = help_of(*words)
    assert help.returncode == 0, help.stderr
    assert [flag for flag in flags if not re.search(rf"{flag}\b", help.stdout)] == []


def test_exit_codes_are_those_of_the_errors() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)}
    raised = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.EventprocError)
    }
    assert documented == raised | {0}


def test_the_handler_example_uses_what_is_exported() -> None:
    tree = ast.parse("".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL)))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "eventproc"
        for alias in node.names
    ]
    assert names
    package = import_module("eventproc")
    assert [name for name in names if not hasattr(package, name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_found_from_the_readme() -> None:
    links = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", README)}
    assert set(PAGES[1:]) <= links


def logged() -> set[str]:
    """What the package logs as a warning or an error: the line's first words, up to what differs."""
    names = set()
    for path in (ROOT / "eventproc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("warning", "error", "exception", "_warn", "warn"):
                continue
            for argument in node.args[:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    names.add(re.split(r" \w+=%|: %| %", argument.value)[0])
                    break
    return names


def test_the_runbook_explains_every_warning() -> None:
    rows = "".join(re.findall(r"^\| (`.+?) \|", RUNBOOK, re.MULTILINE))
    explained = set(re.findall(r"`([^`]+)`", rows))
    assert len(logged()) > 20
    assert logged() - explained == set()


def test_the_runbook_explains_nothing_that_is_not_logged() -> None:
    table = RUNBOOK.split("## What the log says")[1].split("## ")[0]
    rows = "".join(re.findall(r"^\| (`.+?) \|", table, re.MULTILINE))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "eventproc").rglob("*.py"))
    words = {name for name in re.findall(r"`([^`]+)`", rows) if name != "exit_code"}
    said = source.replace('"\n                "', "")
    named = re.compile("(monitor|api) (died|not started)")
    assert [word for word in words if word not in said and not named.fullmatch(word)] == []


def test_the_commands_of_the_runbook_exist() -> None:
    lines = [code.split("#")[0].split() for code in code_in(RUNBOOK)]
    named = {tuple(takewhile(lambda word: not word.startswith("-"), words)) for words in lines if words}
    commands = [words for words in named if words[:1] and words[0] in SCRIPTS]
    assert commands
    for words in commands:
        assert help_of(*words).returncode == 0, words


def headings(page: Path) -> set[str]:
    """Anchors of a page, as they are made from its headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    for path, anchor in links:
        assert anchor in headings((page.parent / path) if path else page), (path, anchor)


def test_nothing_is_left_to_be_pasted() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "TODO" not in text
        assert "@@" not in text
