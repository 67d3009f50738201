"""Handlers for benchmarks."""

from __future__ import annotations

import asyncio

from eventproc import Event

NAP_MS = 50


async def nap(event: Event) -> None:
    """Stand in for one that waits for something elsewhere."""
    await asyncio.sleep(NAP_MS / 1000)
