"""There is at most one worker in reserve, whatever happens while it is being started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from eventproc.supervisor import child, spare_worker
from eventproc.supervisor.spare_worker import SpareWorker


class FakeProcess:
    """A process that waits to be told, or to be killed."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.told = b""
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def end(self, code: int = -9) -> None:
        self.returncode = code
        self._ended.set()


class Host:
    """Starts fake processes, each when `gate` is open; until then they are being started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[FakeProcess] = []
        self.gate = asyncio.Event()
        self.asked = 0
        monkeypatch.setattr(child, "spawn", self._spawn)
        monkeypatch.setattr(child, "tell", self._tell)
        monkeypatch.setattr(child, "send", lambda process, _sig: process.end())
        monkeypatch.setattr(spare_worker, "_AFTER_START_S", 0.01)
        monkeypatch.setattr(spare_worker, "_AFTER_TAKING_S", 0.01)
        self.spare = SpareWorker(("worker",), 3)
        self.life = asyncio.ensure_future(self.spare.keep())

    async def _spawn(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> Any:
        self.asked += 1
        await self.gate.wait()
        self.started.append(FakeProcess())
        return self.started[-1]

    async def _tell(self, process: FakeProcess, line: bytes) -> None:
        process.told = line

    def idle(self) -> list[FakeProcess]:
        return [process for process in self.started if process.returncode is None and not process.told]

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not what():
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Several of the spare's pauses go by."""
        for _ in range(20):
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.spare.stop()
        async with asyncio.timeout(10):
            await self.life
        assert self.idle() == []


def test_a_worker_that_is_needed_while_the_spare_is_being_started_leaves_one_in_reserve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def go() -> None:
        host = Host(monkeypatch)
        await host.until(lambda: host.asked == 1)
        needed = asyncio.ensure_future(host.spare.start(b"partition 0"))
        await host.until(lambda: host.asked == 2)
        host.gate.set()
        await needed
        await host.until(host.idle)
        await host.settle()
        assert len(host.idle()) == 1
        await host.stop()

    asyncio.run(go())


def test_one_is_started_for_each_that_was_taken_or_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        host = Host(monkeypatch)
        host.gate.set()
        await host.until(host.idle)
        [first] = host.idle()
        assert await host.spare.start(b"partition 0") is first  # type: ignore[comparison-overlap]
        assert first.told == b"partition 0"
        await host.until(host.idle)
        [second] = host.idle()
        second.end(1)
        await host.until(host.idle)
        await host.settle()
        assert len(host.started) == 3
        await host.stop()

    asyncio.run(go())


def test_a_stop_while_it_is_being_started_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        host = Host(monkeypatch)
        await host.until(lambda: host.asked == 1)
        host.spare.stop()
        host.gate.set()
        await host.stop()
        assert len(host.started) == 1

    asyncio.run(go())
