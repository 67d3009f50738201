"""Holds the header of every Lua script against its code (house style: headers must not drift)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eventproc.store
from eventproc.store.scripts import NAMES, load_scripts

FOLDER = Path(eventproc.store.__file__).parent / "lua"
FILES = sorted(FOLDER.glob("*.lua"))

#: What the scripts may use: deterministic enough, and all in Redis 6.2.
COMMANDS = {
    *(
        "DEL",
        "EXISTS",
        "GET",
        "HDEL",
        "HGETALL",
        "HMGET",
        "HSET",
        "LINDEX",
        "LLEN",
        "LPOS",
        "LTRIM",
        "MGET",
        "COPY",
        "PEXPIREAT",
    ),
    *("RPUSH", "SET", "TIME", "TYPE", "ZADD", "ZCARD", "ZRANGE", "ZREMRANGEBYSCORE"),
}


def split(path: Path) -> tuple[list[str], str]:
    """The header's lines without their dashes, and the code without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    header = [line[2:].removeprefix(" ") for line in lines[:end]]
    return header, "\n".join(re.sub(r"\s*--.*", "", line) for line in lines[end:])


def section(header: list[str], name: str) -> list[str]:
    """The lines below a heading."""
    start = header.index(name) + 1
    end = next((i for i in range(start, len(header)) if header[i] and header[i][0] != " "), len(header))
    return header[start:end]


def documented(header: list[str], name: str) -> tuple[list[int], bool]:
    """The numbers that a section gives to fixed places, and whether more follow."""
    fixed, more = [], False
    for line in section(header, name):
        if match := re.match(r" {2}(\d+)(\.\.)?\s", line):
            if match[2]:
                more = True
                fixed.append(int(match[1]))
            else:
                fixed.append(int(match[1]))
    return fixed, more


def used(code: str, name: str) -> set[int]:
    return {int(number) for number in re.findall(rf"\b{name}\[(\d+)\]", code)}


def statuses(text: str) -> set[str]:
    return set(re.findall(r"\{'([a-z]+)'", text))


def faults(header: list[str], code: str) -> list[str]:
    """Everything in which header and code differ."""
    wrong = []
    returns = "\n".join(section(header, "Returns"))
    for name in ("KEYS", "ARGV"):
        fixed, more = documented(header, name)
        if fixed != list(range(1, len(fixed) + 1)):
            wrong.append(f"{name} are numbered {fixed}")
        last = len(fixed) - 1 if more else len(fixed)
        wrong += [f"{name}[{n}] is not documented" for n in sorted(used(code, name)) if n > len(fixed)]
        wrong += [f"{name}[{n}] is not used" for n in range(1, last + 1) if n not in used(code, name)]
    told, done = statuses(returns), statuses("".join(re.findall(r"(?:return|reply =) (\{'.*|\{\{'.*)", code)))
    done |= statuses("".join(re.findall(r"local reply.*= (\{.*)", code)))
    wrong += [f"status {s} is {'not returned' if s in told else 'not documented'}" for s in told ^ done]
    told = set(re.findall(r"error ([A-Z]+)", returns))
    done = set(re.findall(r"error_reply\('([A-Z]+) ", code))
    wrong += [f"error {e} is {'not returned' if e in told else 'not documented'}" for e in told ^ done]
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestEachScript:
    def test_header_and_code_agree(self, path: Path) -> None:
        assert faults(*split(path)) == []

    def test_header_begins_with_the_purpose(self, path: Path) -> None:
        header, _ = split(path)
        assert re.match(r"[A-Z].*[a-z]", header[0])
        assert [line for line in header if line in ("KEYS", "ARGV", "Returns")] == ["KEYS", "ARGV", "Returns"]

    def test_no_key_is_built(self, path: Path) -> None:
        _, code = split(path)
        for match in re.finditer(r"\b(?:call|pcall|try)\(\s*'[A-Z]+'\s*,\s*([^,)]*)", code):
            assert ".." not in match[1], match[0]
            assert not match[1].startswith("'"), match[0]

    def test_only_known_commands(self, path: Path) -> None:
        _, code = split(path)
        found = set(re.findall(r"\b(?:call|pcall|try)\(\s*'([A-Z]+)'", code))
        assert found
        assert found <= COMMANDS

    def test_name_is_verb_and_noun(self, path: Path) -> None:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", path.stem)


def test_every_file_is_loaded() -> None:
    assert {path.stem for path in FILES} == set(NAMES)
    for name, script in load_scripts().items():
        assert script.source == (FOLDER / f"{name}.lua").read_bytes()
        assert len(script.sha1) == 40


GOOD_HEADER = """\
Do it.

KEYS
  1  partition
ARGV
  1   epoch
  2.. the rest
Returns
  {'ok'}  done
  error FOREIGN  wrong"""
GOOD_CODE = "x(KEYS[1], ARGV[1]) return {'ok'} return redis.error_reply('FOREIGN key')"


@pytest.mark.parametrize(
    ("header", "code", "fault"),
    [
        (GOOD_HEADER, GOOD_CODE, ""),
        (GOOD_HEADER, GOOD_CODE.replace("KEYS[1]", ""), "KEYS[1] is not used"),
        (GOOD_HEADER, GOOD_CODE + " ARGV[3]", "ARGV[3] is not documented"),
        (GOOD_HEADER.replace("  1   epoch\n", ""), GOOD_CODE, "ARGV are numbered [2]"),
        (GOOD_HEADER, GOOD_CODE + " return {'fenced'}", "status fenced is not documented"),
        (GOOD_HEADER + "\n  {'late'}", GOOD_CODE, "status late is not returned"),
        (GOOD_HEADER, GOOD_CODE + " error_reply('SCHEMA 2')", "error SCHEMA is not documented"),
        (GOOD_HEADER + "\n  error SCHEMA", GOOD_CODE, "error SCHEMA is not returned"),
    ],
)
def test_the_check_itself_notices(header: str, code: str, fault: str) -> None:
    found = faults(header.splitlines(), code)
    assert found == [] if not fault else fault in found


def fence(path: Path) -> str:
    """How a script finds out whether its caller still owns the partition."""
    _, code = split(path)
    found = re.search(r"^if stored\.err then\n.*?return \{'fenced'\}\nend$", code, re.DOTALL | re.MULTILINE)
    return found[0].replace("string.find", "find") if found else ""


def test_the_fence_is_the_same_in_every_script_that_has_one() -> None:
    fences = {path.stem: fence(path) for path in FILES if "'fenced'" in split(path)[1]}
    assert fences.keys() == {"acquire_events", "finalize_events", "release_events", "renew_partition"}
    assert len(set(fences.values())) == 1, fences
    assert "stored_epoch > epoch or stored[2] ~= ARGV[2]" in fences["finalize_events"]
