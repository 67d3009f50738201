"""Quotas of many requests at once: while one call is under way, what comes in waits for the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from eventproc.settings import Settings
from eventproc.store.ingest import Allowance, Charge

#: Groups of events in one script call, so that it stays below about 10 ms.
MAX_CHARGES = 1000


class Quotas(Protocol):
    """The part of `IngestStore` that is used."""

    async def rate_limit(self, charges: Sequence[Charge]) -> list[Allowance]: ...


class RateLimiter:
    """Charges events to users and addresses (CONTRACT section 9)."""

    def __init__(self, settings: Settings, store: Quotas) -> None:
        self._by_user = settings.rate_limit_per_user > 0
        self._by_ip = settings.rate_limit_per_ip > 0
        self._store = store
        self._waiting: deque[tuple[list[Charge], asyncio.Future[list[Allowance]]]] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def take(self, users: Sequence[str], ip: str) -> list[tuple[int, Allowance]]:
        """Charge an event of each of these users, in order: pairs of how many events in a row (of one user)
        and what is allowed of them. Raises Transient when Redis does not answer; nothing is known then.
        """
        runs: list[tuple[str, int]] = []
        for user in users:
            if runs and runs[-1][0] == user:
                runs[-1] = (user, runs[-1][1] + 1)
            else:
                runs.append((user, 1))
        if not (self._by_user or self._by_ip):
            return [(count, Allowance(count, 0, 0)) for _, count in runs]
        ip = ip if self._by_ip else ""
        charges = [Charge(user if self._by_user else "", ip, count) for user, count in runs]
        answer: asyncio.Future[list[Allowance]] = asyncio.get_running_loop().create_future()
        self._waiting.append((charges, answer))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        allowances = await answer
        return [(count, allowance) for (_, count), allowance in zip(runs, allowances, strict=True)]

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._call()
        finally:
            self._runner = None

    async def _call(self) -> None:
        together = [self._waiting.popleft()]
        size = len(together[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= MAX_CHARGES:
            together.append(self._waiting.popleft())
            size += len(together[-1][0])
        try:
            allowances = await self._store.rate_limit(
                [charge for charges, _ in together for charge in charges]
            )
        except Exception as error:
            # those that came meanwhile have waited as long: nobody waits for two calls that bring nothing
            for _, answer in (*together, *self._waiting):
                if not answer.done():
                    answer.set_exception(error)
            self._waiting.clear()
            return
        at = 0
        for charges, answer in together:
            if not answer.done():
                answer.set_result(allowances[at : at + len(charges)])
            at += len(charges)
