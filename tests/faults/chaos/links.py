"""A link of the proxy that is spoilt for a while: what faults of either server's connections share."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from tests.faults.chaos.ground import Ground
from tests.faults.chaos.proxy import Mode
from tests.integration.supervised import wait_for

#: Where nobody is there whom it could hit (a supervisor starts), it lasts until somebody is.
_SEEN_TIMEOUT_S = 5.0


def spoilt(ground: Ground, link: str, mode: Mode, **options: float) -> Generator[None, None, int]:
    """Inject, and heal after the `yield`; how often the mode took effect."""
    proxy = ground.proxy
    before = proxy.hits(link)[mode]
    proxy.set(link, mode, **options)
    yield
    with contextlib.suppress(AssertionError):
        wait_for(lambda: proxy.hits(link)[mode] > before, _SEEN_TIMEOUT_S)
    return proxy.set(link, "pass")[mode] - before
