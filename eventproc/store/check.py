"""Whether a Redis server is fit for eventproc, found out before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from eventproc.errors import ConfigError, DependencyError
from eventproc.settings import Settings
from eventproc.store.address import connection_options, describe
from eventproc.store.keys import flat
from eventproc.store.scripts import load_scripts

MIN_VERSION = (6, 2)

#: How Redis 7 tells that a user may not do something within a script; it drops the code NOPERM there.
NO_RIGHTS = "The user executing the script can't"

_NEEDS = "its user needs INFO, SCRIPT LOAD, EVALSHA and the commands on the keys that the scripts use"


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """What is worth knowing of a server. `maxmemory_bytes` 0 = unlimited; `policy` "" = not told."""

    version: str
    maxmemory_bytes: int
    policy: str


def check_redis(settings: Settings) -> RedisInfo:
    """Connect once, and see that scripts run.

    Raises DependencyError when the server cannot be reached or is not ready, ConfigError when it or the
    settings have to be changed first: password, rights, database, version, policy, cluster mode.
    """
    where = describe(settings)
    options = connection_options(settings)
    kind = options.pop("connection_class", redis.Connection)
    timeout_s = settings.redis_timeout_ms / 1000
    options |= {"socket_timeout": timeout_s, "retry": Retry(NoBackoff(), 0), "protocol": 2}
    if not issubclass(kind, redis.UnixDomainSocketConnection):
        options["socket_connect_timeout"] = timeout_s
    pool = redis.ConnectionPool(connection_class=kind, **options)
    client: Any = redis.Redis(connection_pool=pool)
    try:
        return _check(client, settings, where)
    except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
        raise ConfigError(
            f"Redis at {where} refuses the user or password: {error}; put them into redis_url, "
            f"or the password into redis_password_file"
        ) from None
    except redis.exceptions.NoPermissionError as error:
        raise ConfigError(f"Redis at {where}: {error}; {_NEEDS}") from None
    except redis.BusyLoadingError:
        raise DependencyError(f"Redis at {where} is still loading its data: try again later") from None
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise DependencyError(
            f"Redis at {where} cannot be reached: {error}; is it running, and is redis_url right?"
        ) from None
    except redis.ResponseError as error:
        message = str(error)
        if NO_RIGHTS in message:
            raise ConfigError(f"Redis at {where}: {message}; {_NEEDS}") from None
        if "NOAUTH" in message or "WRONGPASS" in message or "AUTH" in message:
            raise ConfigError(
                f"Redis at {where} refuses the user or password: {message}; put them into redis_url, "
                f"or the password into redis_password_file"
            ) from None
        if "DB index" in message or "SELECT" in message:
            raise ConfigError(f"Redis at {where}: {message}; correct the database in redis_url") from None
        raise DependencyError(f"Redis at {where} answers: {message}") from None
    except redis.RedisError as error:  # what comes back cannot be read
        raise DependencyError(f"what answers at {where} is no Redis ({error}): is redis_url right?") from None
    finally:
        client.close()
        pool.disconnect()


def _check(client: Any, settings: Settings, where: str) -> RedisInfo:
    server, memory, replication = (client.info(section) for section in ("server", "memory", "replication"))
    if "redis_version" not in server:
        raise DependencyError(f"what answers at {where} is no Redis: is redis_url right?")
    version = str(server["redis_version"])
    if _numbers(version) < MIN_VERSION:
        least = ".".join(map(str, MIN_VERSION))
        raise ConfigError(f"Redis at {where} is version {version}, too old: {least} or later is needed")
    if server.get("redis_mode") == "cluster":
        raise ConfigError(
            f"Redis at {where} is in cluster mode, which is not supported yet: use a single server"
        )
    if replication.get("role") == "slave":
        raise DependencyError(
            f"Redis at {where} is a replica, which takes no writes: let redis_url name the primary"
        )
    info = RedisInfo(version, int(memory.get("maxmemory", 0)), _policy(client, memory))
    if info.policy not in ("noeviction", "") and not settings.allow_eviction:
        raise ConfigError(
            f"Redis at {where} has maxmemory-policy {info.policy}, which may drop locks and markers: run "
            f"`redis-cli config set maxmemory-policy noeviction`, or set allow_eviction to start all the same"
        )
    keyspace = flat(settings.key_prefix, settings.kafka_topic, 0)
    for script in load_scripts().values():
        client.script_load(script.source)
        if script.name == "load_users":
            # Reads two keys of a user that cannot exist, to see whether the rights suffice for scripts.
            client.evalsha(script.sha1.decode(), 2, keyspace.order + " ", keyspace.next + " ")
    return info


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _policy(client: Any, memory: dict[str, Any]) -> str:
    """INFO tells it nearly everywhere; where it does not, CONFIG may be allowed instead."""
    if "maxmemory_policy" in memory:
        return str(memory["maxmemory_policy"])
    try:
        found: dict[str, str] = client.config_get("maxmemory-policy")
    except redis.ResponseError:
        return ""
    return found.get("maxmemory-policy", "")
