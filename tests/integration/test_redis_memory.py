"""What status, metrics and the log tell of Redis' memory, in a whole deployment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventproc.cli.supervisor_commands import _print_table
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import Deployment, event
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

MIB = 2**20
EVENTS = 3000


@pytest.fixture
def it(embedded_broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer("--maxmemory", str(1024 * MIB)) as server:
        deployment = Deployment(embedded_broker, server, tmp_path, event_ttl_s=300, dedup_ttl_s=300)
        yield deployment
        deployment.close()


def memory(it: Deployment) -> dict[str, Any]:
    """Redis as `status` has it; {} while nothing is known."""
    found: dict[str, Any] = it.status()["supervisor"]["redis"] or {}
    return found


def warnings(it: Deployment) -> list[str]:
    return [line for line in it.log().splitlines() if "Redis will be full" in line]


def test_told_from_the_first_rate_on_and_warned_of_once(
    it: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    it.start()
    it.until(lambda: memory(it), "a first reading")
    assert memory(it)["bytes_per_event"] is None  # no event, no rate, no number
    assert memory(it)["hours_until_maxmemory"] is None
    assert memory(it)["maxmemory_bytes"] == 1024 * MIB

    it.send(*(event(f"u{number}", 1) for number in range(EVENTS)))
    it.until(lambda: memory(it)["hours_until_maxmemory"], "a rate")
    told = memory(it)
    taken = int(it.redis.info("memory")["used_memory"])
    assert abs(told["used_bytes"] - taken) < MIB
    assert 200 < told["bytes_per_event"] < 1000
    # 1 GiB, and 3000 events of 500 bytes in 5 s or more: far beyond the five minutes that events live
    assert told["hours_until_maxmemory"] > 0.3
    # another reading may come between the two, but hardly each time
    it.until(
        lambda: (
            round(it.metric("redis_seconds_until_maxmemory") / 3600, 3) == memory(it)["hours_until_maxmemory"]
            and it.metric("redis_bytes_per_event") == memory(it)["bytes_per_event"]
        ),
        "the same in metrics and status",
    )
    capsys.readouterr()
    _print_table(it.status())
    assert " bytes per event, full in " in capsys.readouterr().out

    limit = taken + MIB
    it.redis.config_set("maxmemory", limit)
    it.until(lambda: warnings(it), "the warning")
    it.until(lambda: memory(it)["maxmemory_bytes"] == limit, "the new limit")
    # it comes once, so none came while memory was plenty
    [line] = warnings(it)
    assert f"maxmemory_mib={round(limit / MIB)} " in line
    assert "event_ttl_s=300" in line
    assert " bytes_per_event=" in line
    assert "remedy=\"raise Redis' maxmemory to " in line
    assert it.stop() == 0
    assert len(warnings(it)) == 1
