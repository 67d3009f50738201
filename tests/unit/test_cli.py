"""The commands as a user types them: help, errors as one line, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import eventproc
from eventproc.settings import Settings
from eventproc.settings_load import flag_name, is_secret, settings_markdown
from tests.integration.supervised import ROOT
from tests.ports import free_port

EVENTPROC = "from eventproc.cli.main import main; main()"
SUPERVISOR = "from eventproc.cli.supervisor import main; main()"


def run(entry: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", entry, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert eventproc.__version__ == project["version"]
    for entry, name in ((EVENTPROC, "eventproc"), (SUPERVISOR, "eventproc-supervisor")):
        found = run(entry, "--version")
        assert (found.returncode, found.stdout) == (0, f"{name} {eventproc.__version__}\n")


def test_the_public_names() -> None:
    assert sorted(eventproc.__all__) == ["Event", "Reject", "__version__", "batch"]
    assert all(hasattr(eventproc, name) for name in eventproc.__all__)


def test_help_names_the_commands() -> None:
    found = run(EVENTPROC, "--help")
    assert found.returncode == 0
    for name in ("produce", "verify", "dlq", "offsets", "settings"):
        assert f"  {name} " in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 80


def test_start_has_a_flag_for_every_setting_but_secrets() -> None:
    found = run(SUPERVISOR, "start", "--help")
    words = found.stdout.replace(",", " ").split()
    for name, field in Settings.model_fields.items():
        assert (flag_name(name) in words) != is_secret(field), name
    assert "--embedded" in words
    assert max(map(len, found.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["status", "stop", "restart"])
def test_the_words_that_started_it_find_it_too(tmp_path: Path, command: str) -> None:
    flags = ("--runtime-dir", str(tmp_path), "--gap-timeout-ms", "5", "--no-create-topics")
    found = run(SUPERVISOR, command, *flags)
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: no supervisor is running for these settings (tried {tmp_path}/")
    assert "--gap-timeout-ms" not in run(SUPERVISOR, command, "--help").stdout


def test_the_settings_table_is_printed() -> None:
    found = run(EVENTPROC, "settings", "--markdown")
    assert (found.returncode, found.stdout) == (0, settings_markdown() + "\n")
    plain = run(EVENTPROC, "settings")
    assert "gap_timeout_ms (int) = 5000\n" in plain.stdout


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        (EVENTPROC, ["dance"]),
        (EVENTPROC, ["settings", "--nothing"]),
        (SUPERVISOR, ["start", "--gap-timout-ms", "5"]),
        (SUPERVISOR, ["restart", "--partition", "x"]),
    ],
)
def test_a_wrong_call_exits_2(entry: str, arguments: list[str]) -> None:
    found = run(entry, *arguments)
    assert found.returncode == 2
    assert "Error: " in found.stderr
    assert "Traceback" not in found.stderr


def test_a_wrong_setting_is_one_line_and_exits_3(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text("gap_timout_ms = 5\n")
    found = run(SUPERVISOR, "start", "--config", str(config), "--max-attempts", "0")
    assert found.returncode == 3
    assert found.stderr.splitlines() == [
        f"error: unknown setting 'gap_timout_ms' in {config}: did you mean gap_timeout_ms?",
        "error: max_attempts='0' (from --max-attempts): should be greater than 0",
    ]
    assert found.stdout == ""


def test_a_bool_setting_is_a_switch() -> None:
    found = run(SUPERVISOR, "start", "--no-create-topics", "--max-attempts", "0")
    assert found.stderr == "error: max_attempts='0' (from --max-attempts): should be greater than 0\n"


@pytest.mark.parametrize("arguments", [["dlq", "list"], ["dlq", "show", "x"]])
def test_a_redis_that_is_away_is_one_line_and_exits_5(arguments: list[str]) -> None:
    port = free_port()
    found = run(EVENTPROC, *arguments, env={"EVENTPROC_REDIS_URL": f"redis://:hunter2@127.0.0.1:{port}/0"})
    assert found.returncode == 5
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: Redis at redis://127.0.0.1:{port}/0 ")
    assert "hunter2" not in line


def test_a_kafka_that_is_away_is_one_line_and_exits_5() -> None:
    port = free_port()
    found = run(EVENTPROC, "offsets", "show", "--kafka-bootstrap-servers", f"127.0.0.1:{port}")
    assert found.returncode == 5
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: Kafka at 127.0.0.1:{port} does not answer")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", EVENTPROC, "settings", "--markdown"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_a_reader_that_goes_away_before_the_last_words_is_no_traceback() -> None:
    code = (
        "import sys, types; from eventproc.cli.run import run\n"
        "def app(): print('buffered'); sys.stdin.read(); sys.exit(0)\n"
        "sys.modules['command'] = types.SimpleNamespace(app=app); run('command')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("what", ["logging", "typer"])  # what is imported first, and what takes long
@pytest.mark.parametrize(
    ("module", "command", "code"),
    [("main", "demo", 130), ("supervisor", "start", 0), ("supervisor", "stop", 130), ("api", "start", 0)],
)
def test_interrupt_while_it_is_being_imported_is_no_traceback(
    tmp_path: Path, module: str, command: str, code: int, what: str
) -> None:
    (tmp_path / f"{what}.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-c", f"from eventproc.cli.{module} import main; main()", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == code
        assert process.stderr.read() == ""
