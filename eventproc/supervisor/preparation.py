"""What happens before the first worker: embedded servers, and the preflight's verdict."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any, Protocol

from eventproc.errors import (
    ConfigError,
    DependencyError,
    EventprocError,
    Fenced,
    HandlerLoadError,
    UsageError,
)
from eventproc.forked import Module, Program
from eventproc.settings import Settings
from eventproc.spawn import PreflightSpec
from eventproc.supervisor import child

_ERRORS: dict[int, type[EventprocError]] = {
    kind.exit_code: kind for kind in (UsageError, ConfigError, HandlerLoadError, DependencyError, Fenced)
}

PREFLIGHT = Module("eventproc.preflight")
_PREFLIGHT_TIMEOUT_S = 60.0


class Server(Protocol):
    """An embedded server, started."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def stop(self) -> None: ...


#: Starts the embedded servers; returns them by name, and the settings that lead to them.
Embed = Callable[[Settings], tuple[dict[str, Server], Settings]]


def start_embedded(settings: Settings) -> tuple[dict[str, Server], Settings]:
    """Start a broker and a Redis server that end with this process."""
    from pydantic import SecretStr

    from eventproc.broker.embedded import EmbeddedBroker
    from eventproc.store.embedded import EmbeddedRedis

    topics = dict.fromkeys((settings.kafka_topic, settings.dlq_topic), settings.topic_partitions)
    broker = EmbeddedBroker(
        topics, group=settings.kafka_group_id, keep_records=settings.embedded_keep_records
    ).start()
    try:
        redis = EmbeddedRedis().start()
    except BaseException:
        broker.stop()
        raise
    found = {
        "kafka_bootstrap_servers": broker.bootstrap_servers,
        "kafka_config": {**broker.client_config, **settings.kafka_config},
        "redis_url": SecretStr(redis.url),
        "redis_password_file": "",
    }
    return {"broker": broker, "redis": redis}, settings.model_copy(update=found)


def error_of(exit_code: int, message: str) -> EventprocError:
    """The error that a child which ended with this code wants to be told."""
    return _ERRORS.get(exit_code, EventprocError)(message)


async def preflight(settings: Settings, supervisor: str, program: Program = PREFLIGHT) -> int:
    """Number of partitions of the topic, once Kafka, Redis and the handler are as they must be.

    Raises the error that the preflight found. When cancelled, the process is killed.
    """
    order = PreflightSpec(settings.revealed(), supervisor).dump()
    process = await child.spawn(program, order, "preflight", capture=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_PREFLIGHT_TIMEOUT_S):
            output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
            code = await process.wait()
    except TimeoutError:
        raise DependencyError(
            f"preflight: Kafka or Redis did not answer in {_PREFLIGHT_TIMEOUT_S:g} s"
        ) from None
    finally:
        if process.returncode is None:
            await child.end(process, signal.SIGKILL, 1)
    try:
        verdict: dict[str, Any] = json.loads(output)
    except ValueError:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise EventprocError(f"preflight {child.describe_exit(code)}: {last}") from None
    if not verdict["ok"]:
        raise error_of(int(verdict["exit_code"]), str(verdict["message"]))
    return int(verdict["partitions"])
