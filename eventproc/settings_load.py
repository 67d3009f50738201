"""Loads settings: flags before environment before TOML file before defaults; and prints the table of them."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from eventproc.errors import ConfigError
from eventproc.settings import Settings

PREFIX = "EVENTPROC_"
CONFIG_VARIABLE = "EVENTPROC_CONFIG"

#: Variables that are no settings: the file's name, and the switches of the test suites.
_OTHER_VARIABLES = (CONFIG_VARIABLE,)
_OTHER_PREFIXES = ("EVENTPROC_TEST_", "EVENTPROC_CRASH_", "EVENTPROC_BENCH_", "EVENTPROC_CHAOS_")


def load_settings(flags: Mapping[str, Any] | None = None, config: str | Path | None = None) -> Settings:
    """Settings of this process.

    `flags`: what the command line said, by setting name. `config`: the TOML file; None: the one that
    EVENTPROC_CONFIG names, if any. Raises ConfigError with one line for each problem.
    """
    flags = dict(flags or {})
    path = config or os.environ.get(CONFIG_VARIABLE) or None
    in_file = _read_file(Path(path)) if path else {}
    in_environment = {
        name[len(PREFIX) :].lower(): name for name in os.environ if name.upper().startswith(PREFIX)
    }
    problems = [_unknown(key, f"setting '{key}' in {path}") for key in in_file if not _is_setting(key)]
    problems += [
        _unknown(key, f"variable {name}", PREFIX)
        for key, name in in_environment.items()
        if not _is_setting(key) and not _is_other(name.upper())
    ]
    known = {key: value for key, value in in_file.items() if _is_setting(key)}
    told = {key: os.environ[name] for key, name in in_environment.items() if _is_setting(key)}
    try:
        settings = Settings(**(known | told | flags))
    except ValidationError as error:
        sources = dict.fromkeys(known, str(path)) | in_environment
        sources |= {key: flag_name(key) for key in flags}
        problems += _problems(error, sources)
    else:
        if not problems:
            return settings
    raise ConfigError("\n".join(problems))


def flag_name(setting: str) -> str:
    """`gap_timeout_ms` -> `--gap-timeout-ms`."""
    return "--" + setting.replace("_", "-")


def is_secret(field: FieldInfo) -> bool:
    """Its value may hold a password: it gets no flag and is shown nowhere."""
    return field.annotation is SecretStr or not field.repr


def type_name(field: FieldInfo) -> str:
    """The type as people write it: int, bool, text, table, or the words that are allowed."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return "|".join(str(word) for word in get_args(annotation))
    names: dict[Any, str] = {int: "int", bool: "bool", float: "number", str: "text", SecretStr: "secret"}
    return names.get(annotation, "table")


def default_text(field: FieldInfo) -> str:
    """The default as it would be written in the environment; empty where there is none."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in ("", {}) else str(value)


def settings_table() -> list[tuple[str, str, str, str]]:
    """(name, type, default, help) of every setting, in the order of the declaration."""
    return [
        (name, type_name(field), default_text(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def settings_markdown() -> str:
    """The same as the Markdown table that the README shows."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in settings_table():
        shown = f"`{default}`" if default else ""
        cells = (f"`{name}`", kind.replace("|", ", "), shown, meaning.replace("|", r"\|"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not TOML: {error}") from None


def _is_setting(key: str) -> bool:
    return key in Settings.model_fields


def _is_other(variable: str) -> bool:
    return variable in _OTHER_VARIABLES or variable.startswith(_OTHER_PREFIXES)


def _unknown(key: str, what: str, prefix: str = "") -> str:
    near = difflib.get_close_matches(key.lower(), Settings.model_fields, n=1)
    if not near:
        return f"unknown {what}: `eventproc settings` lists what there is"
    suggestion = f"{prefix}{near[0].upper()}" if prefix else near[0]
    return f"unknown {what}: did you mean {suggestion}?"


def _problems(error: ValidationError, sources: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for found in error.errors(include_url=False):
        rule = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not found["loc"]:
            lines += rule.splitlines()
            continue
        key = str(found["loc"][0])
        field = Settings.model_fields.get(key)
        if field is None:
            lines.append(_unknown(key, f"setting '{key}'"))
            continue
        value = "" if is_secret(field) else f"={found['input']!r}"
        source = f" (from {sources[key]})" if key in sources else ""
        lines.append(f"{key}{value}{source}: {rule}")
    return lines
