"""Every kind of fault alone under load: it hits, all goes on, and in the end the checker finds nothing.

Those after which nothing may be told apart strike one after the other on one deployment; each is awaited
until all that had been produced by then is final. The others have one each. A fault strikes until it has
hit, or as often as EVENTPROC_TEST_FAULT_HITS says.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from eventproc.workload import Workload
from tests.faults.chaos.fault import Fault, Loss
from tests.faults.chaos.ground import Ground
from tests.faults.chaos.mock_broker import MockServers
from tests.faults.chaos.registry import FAULTS, MIXED
from tests.faults.chaos.servers import Behind, Servers
from tests.integration.supervised import wait_for
from tests.kafka_server import KafkaUnavailable, why_not

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("each_fault")]

HITS = int(os.environ.get("EVENTPROC_TEST_FAULT_HITS", "1"))
MISSES = 3
RATE_PER_S = 600
#: More than is produced until all have struck.
EVENTS = 400_000
GOES_ON_S = 120
SEED = 1
#: Redis forgets: a host that stands by may find the partition free before its owner knows.
FORGETFUL = [name for name, fault in MIXED.items() if fault.loss != "nothing"]


#: The last step at a place.
JUDGEMENT = "judgement"


def place_of(fault: Fault) -> str:
    """Where it strikes: those with the same place do so on one deployment."""
    if fault.name not in MIXED:
        return "mock"
    return f"{fault.hosts} hosts" if fault.loss == "nothing" else fault.name


BY_PLACE = {place: list(faults) for place, faults in groupby(sorted(FAULTS.values(), key=place_of), place_of)}


class Site:
    """A deployment under load, made when the first fault strikes, and anew after one that did harm."""

    def __init__(self, servers: Behind, folder: Path, hosts: int, loss: Loss) -> None:
        self._servers = servers
        self._folder = folder
        self._hosts = hosts
        self._loss = loss
        self._grounds = 0
        self._ground: Ground | None = None

    def strike(self, fault: Fault) -> list[int]:
        """Let it happen until it has hit; how often it did, each time."""
        try:
            return self._strike(self._ground or self._open(), fault)
        except BaseException:
            self.close()
            raise

    def end(self) -> None:
        """Let all become final, and have it judged."""
        assert self._ground is not None
        ground = self._ground
        ground.end_load()
        ground.drain()
        report = ground.judge()
        assert report.clean, f"{json.dumps(report.as_json(), indent=1)}\n{ground.hosts[0].log()[-3000:]}"
        ground.stop()

    def close(self) -> None:
        ground, self._ground = self._ground, None
        if ground is not None:
            ground.close()

    def _open(self) -> Ground:
        self._grounds += 1
        folder = self._folder / str(self._grounds)
        folder.mkdir()
        self._ground = ground = Ground(self._servers, folder, hosts=self._hosts)
        ground.start()
        ground.put_under(workload_for(ground.topic, self._loss))
        return ground

    def _strike(self, ground: Ground, fault: Fault) -> list[int]:
        rng = random.Random(f"{SEED}/{fault.name}")
        hits: list[int] = []
        while sum(map(bool, hits)) < HITS and len(hits) < HITS + MISSES:
            injection = fault.inject(ground, rng)
            _pass_time(injection.lasts_s)
            hits.append(injection.heal())
            _pass_time(0.3)
        ground.goes_on(GOES_ON_S)
        return hits


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    if reason := why_not():
        pytest.skip(f"no real Kafka: {reason}")
    try:
        servers = Servers().__enter__()
    except KafkaUnavailable as error:
        pytest.skip(f"no real Kafka: {error}")
    yield servers
    servers.__exit__(None, None, None)


@pytest.fixture(scope="module")
def mock_servers() -> Iterator[MockServers]:
    with MockServers() as servers:
        yield servers


@pytest.fixture(scope="module")
def site_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Site]]:
    """The site of a place; that of the place before is left."""
    place_now = ""
    site: Site | None = None

    def site_of(place: str) -> Site:
        nonlocal place_now, site
        if site is None or place != place_now:
            if site is not None:
                site.close()
            first = BY_PLACE[place][0]
            servers = request.getfixturevalue("servers" if first.name in MIXED else "mock_servers")
            site = Site(servers, tmp_path_factory.mktemp("site"), first.hosts, first.loss)
            place_now = place
        return site

    yield site_of
    if site is not None:
        site.close()


def workload_for(topic: str, loss: Loss) -> Workload:
    """Everything that may happen to an event, as far as what comes of it is decided by the log alone."""
    mixed: dict[str, Any] = {"duplicate_ratio": 0.02, "stale": 200, "conflicts": 200, "missing_seqs": 100}
    if loss == "effects":  # a copy of what is lost is no duplicate any more
        mixed = {}
    return Workload(
        topic=topic,
        users=EVENTS // 50,
        events_per_user=50,
        shuffle_window=50,
        failing_ratio=0.02,
        unsequenced_ratio=0.01,
        invalid_records=200,
        tombstones=50,
        rate=RATE_PER_S,
        **mixed,
    )


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (place, name)
        for place, faults in BY_PLACE.items()
        for name in [*(it.name for it in faults), JUDGEMENT]
    ],
    ids=lambda part: part.replace(" ", "_"),
)
def test_alone(site_of: Callable[[str], Site], place: str, name: str) -> None:
    site = site_of(place)
    if name == JUDGEMENT:
        site.end()
    else:
        hits = site.strike(FAULTS[name])
        assert sum(map(bool, hits)) == HITS, hits


@pytest.mark.parametrize("name", FORGETFUL)
def test_alone_with_a_host_that_stands_by(name: str, servers: Servers, tmp_path: Path) -> None:
    fault = FAULTS[name]
    site = Site(servers, tmp_path, 2, fault.loss)
    try:
        hits = site.strike(fault)
        site.end()
    finally:
        site.close()
    assert sum(map(bool, hits)) == HITS, hits


def _pass_time(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, seconds + 10)
