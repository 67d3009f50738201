"""Faults of eventproc's own processes: signals, takeovers, and the crash points."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from random import Random

import psutil  # type: ignore[import-untyped]

from eventproc.crashpoints import POINTS
from tests.faults.chaos.fault import fault
from tests.faults.chaos.ground import Ground
from tests.integration.supervised import wait_for

Hits = Generator[None, None, int]
_TAKEN_TIMEOUT_S = 30


@fault("workers", lasts_s=(0, 0.2))
def worker_killed(ground: Ground, rng: Random) -> Hits:
    """A worker is killed (SIGKILL) with events in work."""
    owner = ground.busy_owner(rng)
    owner.process.kill()
    yield
    return int(owner.in_flight > 0)


@fault("workers", lasts_s=(0, 0.2))
def worker_terminated(ground: Ground, rng: Random) -> Hits:
    """A worker gets TERM from somebody else than its supervisor: it drains, and is started again."""
    owner = ground.busy_owner(rng)
    owner.process.terminate()
    yield
    return int(owner.in_flight > 0)


@fault("workers", lasts_s=(0.3, 2.0))
def worker_frozen(ground: Ground, rng: Random) -> Hits:
    """A worker is stopped (SIGSTOP) for a while and goes on as if nothing had been."""
    owner = ground.busy_owner(rng)
    owner.process.suspend()
    yield
    with contextlib.suppress(psutil.NoSuchProcess):
        owner.process.resume()
    return int(owner.in_flight > 0)


@fault("workers", "supervisors", lasts_s=(0, 0.5), hosts=2)
def worker_zombie(ground: Ground, rng: Random) -> Hits:
    """A worker is stopped past its lease and woken when the other host has its partition (CONTRACT 6)."""
    owner = ground.busy_owner(rng)
    before = ground.epoch(owner.partition)
    owner.process.suspend()
    taken = False
    with contextlib.suppress(AssertionError):
        wait_for(lambda: ground.epoch(owner.partition) > before, _TAKEN_TIMEOUT_S)
        taken = True
    yield
    with contextlib.suppress(psutil.NoSuchProcess):
        owner.process.resume()
    return int(taken and owner.in_flight > 0)


@fault("workers", "supervisors", lasts_s=(0, 0.3))
def supervisor_killed(ground: Ground, rng: Random) -> Hits:
    """A supervisor is killed: no worker of it is alive after 2 s; it is started again."""
    owner = ground.busy_owner(rng)
    ground.take_down(owner.host)
    yield
    ground.bring_up(owner.host)
    return int(owner.in_flight > 0)


@fault("workers", "supervisors", lasts_s=(0, 0.3))
def supervisor_terminated(ground: Ground, rng: Random) -> Hits:
    """A supervisor gets TERM, drains, and is started again."""
    owner = ground.busy_owner(rng)
    assert ground.take_down(owner.host, signal.SIGTERM) == 0
    yield
    ground.bring_up(owner.host)
    return int(owner.in_flight > 0)


@fault("workers", "supervisors", lasts_s=(0, 0.3))
def supervisor_terminated_twice(ground: Ground, rng: Random) -> Hits:
    """A supervisor gets TERM and, at some moment of the drain, a second one."""
    owner = ground.busy_owner(rng)
    host = owner.host
    host.signal(signal.SIGTERM)
    threading.Event().wait(rng.uniform(0, 0.05))
    if host.process is not None and host.process.poll() is None:
        ground.take_down(host, signal.SIGTERM)
    yield
    ground.bring_up(host)
    return int(owner.in_flight > 0)


@fault("workers", "supervisors", lasts_s=(0.1, 1.0), hosts=2)
def host_takes_over(ground: Ground, rng: Random) -> Hits:
    """The host that stands by is started again with --takeover: the other one's workers are fenced."""
    owner = ground.busy_owner(rng)
    other = next(host for host in ground.hosts if host is not owner.host)
    ground.take_down(other, signal.SIGTERM)
    before = ground.epochs()
    busy = ground.busy()
    ground.bring_up(other, arguments=("--takeover",))
    yield
    return int(busy) * sum(now > then for now, then in zip(ground.epochs(), before, strict=True))


@fault("workers", "supervisors", lasts_s=(0, 0.2), hosts=2)
def claims_race(ground: Ground, rng: Random) -> Hits:
    """Both hosts are killed and started at the same moment: for each partition one of them stands by."""
    owner = ground.busy_owner(rng)
    for host in ground.hosts:
        ground.take_down(host)
    yield
    logged = [len(host.log()) for host in ground.hosts]
    ground.bring_up(*ground.hosts)
    lost = sum(host.log()[at:].count(" standby ") for host, at in zip(ground.hosts, logged, strict=True))
    return lost if owner.in_flight else 0


#: Where a worker may die under load; the others are for a drain.
_POINTS = [point for point in POINTS if not point.endswith("_release")]


@fault("workers", "supervisors", lasts_s=(1.0, 3.0))
def worker_dies_at_a_point(ground: Ground, rng: Random) -> Hits:
    """All hosts are started anew, and a worker dies at one of the named points of its way."""
    point, partition = rng.choice(_POINTS), rng.randrange(ground.partitions)
    passes = 1 if point.endswith(("_claim", "_load")) else rng.randint(1, 20)
    first, *others = ground.hosts
    for host in (*others, first):
        ground.take_down(host, signal.SIGTERM)
    at = len(first.log())
    ground.bring_up(first, crash_at=f"{point}:{passes}:kill:{partition}")
    for host in others:
        ground.bring_up(host)
    yield
    return first.log()[at:].count("was killed by SIGKILL")
