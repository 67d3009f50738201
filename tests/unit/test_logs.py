"""Log lines: their form, and what must not be in them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from eventproc import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    library = logging.getLogger("eventproc")
    before = library.handlers[:], library.propagate, library.level
    yield
    library.handlers[:], library.propagate, library.level = before
    structlog.reset_defaults()


class StepClock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    def sleep_ms(self, ms: float) -> None:
        self.now_ms += int(ms)


def test_a_text_line_is_time_level_event_and_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text", partition=3)
    logs.get().info("claimed", epoch=7, reason='a "b"\nc', empty="")
    line = capsys.readouterr().err
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", time)
    assert rest == 'info    claimed partition=3 epoch=7 reason="a \\"b\\"\\nc" empty=""\n'


def test_a_json_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", partition=3)
    logs.get().warning("lag\n", ms=5, user="ü")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {"event": "lag\n", "level": "warning", "partition": 3, "ms": 5, "user": "ü"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_one_line_too(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure("info", form)
    try:
        raise ValueError("x")
    except ValueError:
        logs.get().error("broken", exc_info=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: x" in line


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "text")
    logs.get().info("quiet")
    logs.get().warning("loud")
    assert "quiet" not in (text := capsys.readouterr().err)
    assert "loud" in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_blanked(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure("info", form)
    logs.get().info(
        "connected", redis_url="redis://u:hunter2@host:1/0", redis_password="hunter2", sasl_secret="hunter2"
    )
    text = capsys.readouterr().err
    assert "hunter2" not in text
    assert "redis://***@host:1/0" in text


def test_a_control_character_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logs.get().info("seen", user="\x1b[2J")
    assert "\x1b" not in capsys.readouterr().err


def test_a_repeated_warning_is_told_once_a_minute_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    clock = StepClock()
    rarely = logs.OnceAMinute(clock)
    log = logs.get()
    assert rarely.warning(log, "misrouted", key="a")
    assert not rarely.warning(log, "misrouted", key="a")
    assert rarely.warning(log, "misrouted", key="b")
    clock.sleep_ms(59_999)
    assert not rarely.warning(log, "misrouted", key="a")
    clock.sleep_ms(1)
    assert rarely.warning(log, "misrouted", key="a")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("misrouted more=2")


@pytest.mark.parametrize(("level", "lines"), [("debug", 1), ("info", 0), ("error", 0)])
def test_what_a_client_library_logs_is_for_debugging(
    capsys: pytest.CaptureFixture[str], level: str, lines: int
) -> None:
    logs.configure(level, "text")
    logging.getLogger("eventproc.librdkafka").error("FAIL [x]: refused")
    found = capsys.readouterr().err.splitlines()
    assert len(found) == lines
    logging.getLogger("eventproc.broker.consumer").warning("offset out of range offset=%d", 7)
    assert ("warning offset out of range offset=7" in capsys.readouterr().err) == (level != "error")
    for line in found:
        assert 'debug   client_log logger=eventproc.librdkafka message="FAIL [x]: refused"' in line
