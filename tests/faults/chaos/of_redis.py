"""Faults of Redis and of the way to it: signals, admin commands, failover, the proxy."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Generator
from random import Random

import redis

from tests.faults.chaos.fault import fault
from tests.faults.chaos.ground import Ground, repeated
from tests.faults.chaos.links import spoilt
from tests.faults.chaos.servers import REDIS
from tests.integration.supervised import wait_for
from tests.ports import free_port
from tests.redis_server import RedisServer

Hits = Generator[None, None, int]
#: While a supervisor starts there may be nobody whom a trouble could hit; the trouble lasts until then.
_SEEN_TIMEOUT_S = 5.0

# --- the process ------------------------------------------------------------------------------------------


@fault("redis", lasts_s=(0.1, 2.0))
def redis_killed(ground: Ground, rng: Random) -> Hits:
    """Redis is killed and started again with all that it had acknowledged (AOF)."""
    busy = ground.busy()
    ground.redis_server.kill()
    yield
    ground.redis_server.start()
    return int(busy)


@fault("redis", lasts_s=(0.3, 3.0))
def redis_frozen(ground: Ground, rng: Random) -> Hits:
    """Redis is stopped (SIGSTOP) and goes on."""
    busy = ground.busy()
    ground.redis_server.freeze()
    yield
    ground.redis_server.thaw()
    return int(busy)


@fault("redis", lasts_s=(0.1, 1.0), loss="effects")
def redis_restarted_empty(ground: Ground, rng: Random) -> Hits:
    """Redis is killed and comes back with nothing."""
    busy = ground.busy()
    server = ground.redis_server
    server.kill()
    for path in server.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix in (".aof", ".rdb"):
            path.unlink()
    yield
    server.start()
    return int(busy)


@fault("redis", lasts_s=(0, 0), loss="effects")
def redis_flushed(ground: Ground, rng: Random) -> Hits:
    """FLUSHALL under the running workers."""
    busy = ground.busy()
    ground.admin().flushall()
    yield
    return int(busy)


@fault("redis", "redis link", lasts_s=(0.2, 1.5), loss="replays")
def redis_replica_promoted(ground: Ground, rng: Random) -> Hits:
    """Redis dies and a replica takes its place that lacks its last writes."""
    primary = ground.redis_server
    ground.admin().config_set("repl-diskless-sync-delay", 0)
    replica = RedisServer(persistent=True).start()
    client = replica.client(decode_responses=True)
    client.replicaof("127.0.0.1", primary.port)
    wait_for(lambda: client.info("replication").get("master_link_status") == "up", 30)
    client.replicaof("NO", "ONE")
    yield
    busy = ground.busy()
    keys = [f"partition:{ground.topic}:{number}" for number in range(ground.partitions)]
    before = [ground.admin().hget(key, "rev") for key in keys]
    primary.kill()
    ground.use(replica)
    lacks = sum(client.hget(key, "rev") != rev for key, rev in zip(keys, before, strict=True))
    return lacks if busy else 0


# --- admin commands -----------------------------------------------------------------------------------------


@fault("redis", lasts_s=(0.5, 2.0))
def redis_scripts_flushed(ground: Ground, rng: Random) -> Hits:
    """SCRIPT FLUSH every 100 ms."""
    before = ground.redis_errors("NOSCRIPT")
    client = ground.admin()
    with repeated(0.1, client.script_flush):
        yield
        _until_seen(ground, "NOSCRIPT", before)
    return ground.redis_errors("NOSCRIPT") - before


@fault("redis", lasts_s=(0.2, 1.0))
def redis_clients_killed(ground: Ground, rng: Random) -> Hits:
    """CLIENT KILL of all, several times."""
    busy, killed = ground.busy(), []
    client = ground.admin()

    def kill() -> None:
        killed.append(int(client.client_kill_filter(_type="normal", skipme=True)))

    kill()
    with repeated(0.1, kill):
        yield
    return sum(killed) if busy else 0


@fault("redis", lasts_s=(0.3, 2.0))
def redis_out_of_memory(ground: Ground, rng: Random) -> Hits:
    """maxmemory is reached: writes are refused with OOM."""
    before = ground.redis_errors("OOM")
    client = ground.admin()
    client.config_set("maxmemory", 1)
    yield
    _until_seen(ground, "OOM", before)
    client.config_set("maxmemory", 0)
    return ground.redis_errors("OOM") - before


@fault("redis", lasts_s=(0.3, 2.0))
def redis_readonly(ground: Ground, rng: Random) -> Hits:
    """Redis is a replica for a while (of nobody who answers): READONLY."""
    before = ground.redis_errors("READONLY")
    client = ground.admin()
    client.replicaof("127.0.0.1", free_port())
    yield
    _until_seen(ground, "READONLY", before)
    client.replicaof("NO", "ONE")
    return ground.redis_errors("READONLY") - before


@fault("redis", lasts_s=(0.3, 2.0))
def redis_masterdown(ground: Ground, rng: Random) -> Hits:
    """Redis is a replica that answers nothing as long as its master is away: MASTERDOWN."""
    before = ground.redis_errors("MASTERDOWN")
    client = ground.admin()
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", free_port())
    yield
    _until_seen(ground, "MASTERDOWN", before)
    client.replicaof("NO", "ONE")
    client.config_set("replica-serve-stale-data", "yes")
    return ground.redis_errors("MASTERDOWN") - before


@fault("redis", lasts_s=(0.3, 2.0))
def redis_without_replicas(ground: Ground, rng: Random) -> Hits:
    """Redis wants a replica for each write and has none: NOREPLICAS."""
    before = ground.redis_errors("NOREPLICAS")
    client = ground.admin()
    client.config_set("min-replicas-to-write", 1)
    yield
    _until_seen(ground, "NOREPLICAS", before)
    client.config_set("min-replicas-to-write", 0)
    return ground.redis_errors("NOREPLICAS") - before


@fault("redis", lasts_s=(0.3, 2.0))
def redis_forbids(ground: Ground, rng: Random) -> Hits:
    """The user may not call scripts for a while: NOPERM."""
    before = ground.redis_errors("NOPERM")
    client = ground.admin()
    _set_rights(client, "-evalsha")
    yield
    _until_seen(ground, "NOPERM", before)
    _set_rights(client, "+@all")
    return ground.redis_errors("NOPERM") - before


@fault("redis", lasts_s=(0.3, 1.5))
def redis_busy(ground: Ground, rng: Random) -> Hits:
    """Somebody's script runs for too long: BUSY, until it is killed."""
    before = ground.redis_errors("BUSY")
    client = ground.admin()
    client.config_set("lua-time-limit", 5)

    def run() -> None:
        with contextlib.suppress(redis.RedisError):
            ground.redis_server.client(socket_timeout=30).eval("while true do end", 0)

    thread = threading.Thread(target=run, name="busy", daemon=True)
    thread.start()
    yield
    # INFO is refused meanwhile, too
    deadline = time.monotonic() + _SEEN_TIMEOUT_S
    while thread.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            client.script_kill()
        thread.join(0.05)
    # lest the workers' own scripts make it busy, as one may at this very moment
    ground.look().config_set("lua-time-limit", 5000)
    return ground.redis_errors("BUSY") - before


def _set_rights(client: redis.Redis, rule: str) -> None:
    client.execute_command("ACL SETUSER", "default", rule)  # type: ignore[no-untyped-call]


def _until_seen(ground: Ground, code: str, before: int) -> None:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: ground.redis_errors(code) > before, _SEEN_TIMEOUT_S)


# --- the way to it ------------------------------------------------------------------------------------------


@fault("redis link", lasts_s=(0.1, 1.0))
def redis_reply_lost(ground: Ground, rng: Random) -> Hits:
    """A script call is carried out, its reply is lost with the connection."""
    return (yield from spoilt(ground, REDIS, "lose_reply"))


@fault("redis link", lasts_s=(0.1, 1.0))
def redis_reply_cut(ground: Ground, rng: Random) -> Hits:
    """The connection is cut in the midst of a reply."""
    return (yield from spoilt(ground, REDIS, "cut_reply"))


@fault("redis link", lasts_s=(0.3, 2.0))
def redis_slow(ground: Ground, rng: Random) -> Hits:
    """Each reply comes late."""
    return (yield from spoilt(ground, REDIS, "delay", delay_ms=rng.uniform(20, 300)))


@fault("redis link", lasts_s=(0.3, 3.0))
def redis_link_frozen(ground: Ground, rng: Random) -> Hits:
    """The connections stay, and nothing passes."""
    return (yield from spoilt(ground, REDIS, "freeze"))


@fault("redis link", lasts_s=(0.2, 2.0))
def redis_refused(ground: Ground, rng: Random) -> Hits:
    """The connections are cut, and new ones refused."""
    return (yield from spoilt(ground, REDIS, "refuse"))
