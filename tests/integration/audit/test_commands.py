"""`eventproc produce` and `eventproc verify` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eventproc.settings import Settings
from tests.integration.audit.planting import settings_for
from tests.integration.audit.world import World
from tests.integration.conftest import BrokerUnderTest
from tests.integration.supervised import wait_for
from tests.ports import free_port
from tests.redis_server import RedisServer

COMMAND = [sys.executable, "-c", "from eventproc.cli.main import main; main()"]


def environment(settings: Settings) -> dict[str, str]:
    """One that holds these settings."""
    values = settings.model_dump(exclude_defaults=True) | {"redis_url": settings.redis_url.get_secret_value()}
    others = {name: text for name, text in os.environ.items() if not name.startswith("EVENTPROC_")}
    return others | {
        f"EVENTPROC_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def eventproc(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these settings."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(settings), capture_output=True, text=True, timeout=60
    )


def test_verify_a_clean_state(world: World) -> None:
    done = eventproc(world.settings, "verify", f"--ledger={world.ledger}", f"--runs={world.runs}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean" in done.stdout
    assert "processed" in done.stdout
    assert eventproc(world.settings, "verify", "--wait-s=1").returncode == 0


def test_verify_finds_a_violation(world: World) -> None:
    line = next(line for line in world.lines() if line.kind == "event")
    world.redis.set(f"inflight:{line.id}", "someone")
    done = eventproc(world.settings, "verify", f"--ledger={world.ledger}", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["clean"] is False
    assert report["findings"]["lock"]["count"] == 1
    shown = eventproc(world.settings, "verify", f"--ledger={world.ledger}")
    assert shown.returncode == 1
    assert f"inflight:{line.id} is left: someone" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "1 violation: lock 1"


def test_produce_writes_topic_and_ledger(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    ledger = tmp_path / "ledger"
    done = eventproc(
        settings,
        "produce",
        f"--ledger={ledger}",
        "--users=20",
        "--events-per-user=5",
        "--late-events=2",
        "--late-after-ms=1",
        "--invalid-records=3",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "acknowledged" in done.stdout
    assert len(ledger.read_text().splitlines()) == 100 + 3 + 2
    again = eventproc(settings, "produce", "--users=20", "--events-per-user=5", "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_produce_says_so(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path, number: signal.Signals
) -> None:
    settings, ledger = settings_for(embedded_broker, server), tmp_path / "ledger"
    arguments = ("produce", f"--ledger={ledger}", "--users=1000", "--rate=50")
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment(settings), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(ledger.exists)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read().endswith(": interrupted\n")
        assert process.wait(30) == 128 + number
    assert b'"interrupted":true' in ledger.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["produce", "--users=0"], 2, "users is 0"),
        (["produce", "--duplicate-ratio=7"], 2, "duplicate_ratio"),
        (["verify", "--ledger=/nowhere/at/all"], 2, "/nowhere/at/all"),
        (["verify", "--runs=/nowhere/at/all"], 2, "/nowhere/at/all"),
    ],
)
def test_wrong_use_is_one_clear_message(world: World, arguments: list[str], code: int, says: str) -> None:
    done = eventproc(world.settings, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_kafka_away(world: World) -> None:
    settings = world.settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}"})
    for command in ("produce", "verify"):
        done = eventproc(settings, command)
        assert done.returncode == 5, done.stdout + done.stderr
        assert "kafka_bootstrap_servers" in done.stderr
        assert "Traceback" not in done.stderr
