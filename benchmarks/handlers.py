"""Handlers for benchmarks."""

from __future__ import annotations

import asyncio

from eventproc import Event

NAP_MS = 50


async def nap(event: Event) -> None:
    """Stand in for one that waits for something elsewhere."""
    await asyncio.sleep(NAP_MS / 1000)


async def nap_when_told(event: Event) -> None:
    """Take as long as the event says."""
    if nap_ms := event.payload.get("nap_ms"):
        await asyncio.sleep(nap_ms / 1000)
