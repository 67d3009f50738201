"""Every setting, declared once: environment, TOML file, flags and the docs table derive from here."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, parse_qs, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from eventproc.errors import ConfigError

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_HANDLER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SERVER = re.compile(r"(\w+://)?(\[[0-9A-Fa-f:.]+\]|[^\s:,/\[\]]+):(\d{1,5})")
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_REDIS_SSL = ("cert_reqs", "ca_certs", "ca_path", "certfile", "keyfile", "check_hostname")
_REDIS_PARAMETERS = ("db", "username", "password", "client_name", *(f"ssl_{name}" for name in _REDIS_SSL))

#: Far above any sensible value, and far below what overflows in a socket, in Redis or in Lua.
MOST = 2**31 - 1
#: As many async handlers may run at a time in one worker.
MAX_CONCURRENCY = 1024
#: What a worker needs before a handler is loaded, and some.
LEAST_MEMORY = 256 * 2**20


def _no_bool(value: object) -> object:
    """`max_attempts = true` in a file is a slip, not 1."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
PositiveInt = Annotated[Int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[Int, Field(ge=0, le=MOST)]
Port = Annotated[Int, Field(ge=0, le=65535)]


class Settings(BaseModel):
    """All settings of workers, supervisor, monitor, API and commands (CONTRACT section 8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Kafka
    kafka_bootstrap_servers: str = Field(
        default="localhost:9092", description="Kafka brokers, host:port[,host:port]"
    )
    kafka_topic: str = Field(default="events", description="topic that is consumed")
    kafka_dlq_topic: str = Field(default="", description="dead-letter topic; empty: <kafka_topic>.dlq")
    kafka_group_id: str = Field(
        default="event-processors", description="consumer group whose offsets are committed"
    )
    kafka_config: dict[str, str] = Field(
        default_factory=dict,
        repr=False,  # may hold sasl.password
        description="extra librdkafka properties for every Kafka client; JSON, or a table in the file",
    )
    create_topics: bool = Field(default=True, description="create the topics when they do not exist")
    topic_partitions: PositiveInt = Field(default=8, description="partitions of a topic that is created")
    topic_replication_factor: Int = Field(
        default=-1,
        ge=-1,
        le=32767,
        description="replicas of a topic that is created; -1: the broker's default",
    )
    embedded_keep_records: Int = Field(
        default=0,
        ge=0,
        description="processed records of a partition that the embedded broker keeps; 0: all",
    )
    partitions: str = Field(default="all", description="partitions to own: all, or a list such as 0,1,4-7")

    # Redis
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis or Valkey, redis://, rediss:// or unix://",
    )
    redis_password_file: str = Field(default="", description="file whose first line is the Redis password")
    key_prefix: str = Field(default="", description="put in front of every Redis key")
    allow_eviction: bool = Field(
        default=False, description="start although maxmemory-policy is not noeviction"
    )
    redis_timeout_ms: PositiveInt = Field(
        default=5000, description="a Redis call is tried again after this, ms"
    )

    # Events
    handler: str = Field(
        default="eventproc.handlers:simulate",
        description="package.module:callable of one event, or of a list with @eventproc.batch",
    )
    concurrency: Annotated[Int, Field(gt=0, le=MAX_CONCURRENCY)] = Field(
        default=384, description="async handlers that run at a time in one partition, one of each user"
    )
    handler_batch_max: Annotated[Int, Field(gt=0, le=MAX_CONCURRENCY)] = Field(
        default=100, description="events that a batch handler is given at once, one of each user"
    )
    handler_threads: Annotated[Int, Field(ge=0, le=MAX_CONCURRENCY)] = Field(
        default=0, description="sync handlers that run at a time in one partition, each in a thread, 0: off"
    )
    processing_delay_ms: NonNegativeInt = Field(
        default=0, description="the built-in handler sleeps a random time up to this, ms"
    )
    simulate_runs_dir: str = Field(
        default="", description="the built-in handler appends each of its runs to a file in this folder"
    )
    max_event_bytes: PositiveInt = Field(default=900_000, description="larger records are invalid, bytes")
    misrouted: Literal["process", "dlq"] = Field(
        default="process", description="records whose userId maps to another partition"
    )

    # Order
    gap_timeout_ms: PositiveInt = Field(default=5000, description="how long a missing seq is waited for, ms")
    max_seq_jump: NonNegativeInt = Field(
        default=1_000_000, description="a seq further ahead is dead-lettered, 0: off"
    )
    late_policy: Literal["dlq", "skip"] = Field(default="dlq", description="events below the expected seq")
    order_max_len: NonNegativeInt = Field(
        default=0, description="entries kept in order:<userId>; 0: unlimited"
    )
    gaps_max_len: PositiveInt = Field(default=1000, description="entries kept in gaps:<userId>")
    max_parked_per_user: PositiveInt = Field(default=10_000, description="parked events of one user")
    max_parked: PositiveInt = Field(default=100_000, description="parked events of one partition")
    max_parked_bytes: PositiveInt = Field(
        default=268_435_456, description="parked events of one partition, bytes"
    )
    max_users: PositiveInt = Field(default=100_000, description="users of one partition kept in memory")
    max_replay_records: PositiveInt = Field(
        default=100_000, description="that far above the floor reading pauses, records"
    )

    # Attempts
    max_attempts: PositiveInt = Field(
        default=3, description="runs of the handler before an event is dead-lettered"
    )
    retry_backoff_ms: NonNegativeInt = Field(
        default=5, description="pause before a retry, ms (times the attempt)"
    )
    retry_backoff: Literal["linear", "exponential"] = Field(
        default="linear", description="linear, or exponential with jitter"
    )
    retry_backoff_max_ms: PositiveInt = Field(default=60_000, description="longest pause before a retry, ms")
    handler_timeout_ms: NonNegativeInt = Field(
        default=60_000, description="a worker whose handler runs longer is killed, ms; 0: never"
    )

    # Effects
    locking: Literal["event", "partition"] = Field(
        default="event",
        description="what guards an id while its handler runs: its own lock, or the ownership",
    )
    event_ttl_s: PositiveInt = Field(default=86_400, description="life of event:<id>, s")
    dedup_ttl_s: PositiveInt = Field(
        default=86_400, description="life of dedup:<id>, s; at least event_ttl_s"
    )
    inflight_ttl_ms: PositiveInt = Field(
        default=30_000, description="life of inflight:<id> unless renewed, ms"
    )
    batch_max: Annotated[Int, Field(gt=0, le=2000)] = Field(
        default=500, description="events in one Redis call"
    )
    commit_interval_ms: PositiveInt = Field(
        default=500, description="longest time between commits to Kafka, ms"
    )

    # Dead letters
    dlq_max_len: PositiveInt = Field(default=100_000, description="ids kept in dlq:list")
    dlq_ttl_s: PositiveInt = Field(default=604_800, description="life of dlq:<id>, s")
    dlq_max_ratio: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)] = Field(
        default=0.0,
        description="a partition stops before a larger share of 1000 events is dead-lettered; 0: off",
    )
    dlq_max_consecutive: NonNegativeInt = Field(
        default=0, description="a partition stops before more events in a row are dead-lettered; 0: off"
    )
    dlq_raw_max_bytes: NonNegativeInt = Field(
        default=16_384, description="bytes of the record kept in dlq:<id>"
    )

    # Ownership
    lease_ms: PositiveInt = Field(
        default=10_000, description="an owner on another host is given up after this, ms"
    )
    on_redis_empty: Literal["group", "earliest", "stop"] = Field(
        default="group", description="where to start when Redis holds no position although the group has one"
    )
    on_offset_out_of_range: Literal["stop", "earliest", "latest"] = Field(
        default="stop", description="what to do when the start offset is not in the log any more"
    )

    # Processes
    shutdown_timeout_s: PositiveInt = Field(
        default=30, description="a drain that takes longer is cut short, s"
    )
    heartbeat_timeout_ms: PositiveInt = Field(
        default=30_000, description="a worker without progress outside a handler is killed after this, ms"
    )
    restart_backoff_ms: PositiveInt = Field(
        default=500, description="pause before the second restart, doubling, ms"
    )
    restart_backoff_max_ms: PositiveInt = Field(
        default=30_000, description="longest pause before a restart, ms"
    )
    restart_budget: PositiveInt = Field(
        default=10, description="restarts in a row before a partition waits restart_backoff_max_ms each time"
    )
    worker_memory_max_bytes: Annotated[Int, Field(ge=0, le=2**50)] = Field(
        default=0, description="memory that a worker may allocate, bytes (Linux); 0: no limit"
    )
    worker_nice: Annotated[Int, Field(ge=0, le=19)] = Field(
        default=10, description="niceness of the workers, so that a Redis on the same host goes first"
    )
    runtime_dir: str = Field(
        default="", description="folder of the control socket; empty: $XDG_RUNTIME_DIR or /tmp"
    )
    monitor_host: str = Field(default="127.0.0.1", description="address of /healthz, /readyz and /metrics")
    monitor_port: Port = Field(default=9464, description="port of the monitor; 0: any free one")

    # HTTP ingest API
    api_host: str = Field(default="127.0.0.1", description="address of the HTTP ingest API")
    api_port: Port = Field(default=3000, description="port of the HTTP ingest API; 0: any free one")
    api_keys_file: str = Field(
        default="", description="file of API keys, one a line, one of which POST needs; empty: none needed"
    )
    api_max_body_bytes: PositiveInt = Field(
        default=2_097_152, description="larger request bodies are refused, bytes"
    )
    api_max_buffered_bytes: PositiveInt = Field(
        default=268_435_456, description="bodies held at once; beyond it requests are refused for now, bytes"
    )
    api_read_timeout_ms: PositiveInt = Field(
        default=10_000, description="a request that takes longer to arrive is refused, ms"
    )
    api_timeout_ms: Annotated[Int, Field(ge=100, le=MOST)] = Field(
        default=1500, description="a request is refused, or has failed, when Redis or Kafka takes longer, ms"
    )
    api_access_log: bool = Field(default=True, description="log a line for each request")
    rate_limit_per_user: NonNegativeInt = Field(
        default=100, description="events of one user accepted in rate_window_ms; 0: unlimited"
    )
    rate_limit_per_ip: NonNegativeInt = Field(
        default=0, description="events from one address accepted in rate_window_ms; 0: unlimited"
    )
    rate_window_ms: PositiveInt = Field(default=1000, description="window of the rate limits, ms")
    trusted_proxies: NonNegativeInt = Field(
        default=0, description="the client is the n-th X-Forwarded-For entry from the right; 0: the peer"
    )
    max_lag: NonNegativeInt = Field(
        default=0, description="at so many records that are not final the API refuses more; 0: off"
    )
    idempotency_ttl_s: PositiveInt = Field(
        default=86_400, description="how long an Idempotency-Key is remembered, s"
    )

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level logged"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="key=value lines, or JSON lines")

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        for server in value.split(","):
            match = _SERVER.fullmatch(server.strip())
            if match is None or not 0 < int(match[3]) < 65536:
                raise ValueError("should be host:port[,host:port]")
        return value

    @field_validator("kafka_topic", "kafka_dlq_topic")
    @classmethod
    def _check_topic(cls, value: str, info: Any) -> str:
        if not value and info.field_name == "kafka_dlq_topic":
            return value
        if not _TOPIC.fullmatch(value) or value in (".", ".."):
            raise ValueError("should be 1 to 249 letters, digits, dots, dashes and underscores")
        return value

    @field_validator("kafka_group_id")
    @classmethod
    def _check_group(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("should not be empty")
        return value

    @field_validator("kafka_config", mode="before")
    @classmethod
    def _read_kafka_config(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value or "{}")
            except ValueError:
                raise ValueError("should be a JSON object of librdkafka properties") from None
        return _flatten(value) if isinstance(value, dict) else value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not text.startswith(_REDIS_SCHEMES):
            raise ValueError("should begin with redis://, rediss:// or unix://")
        try:
            parts = urlsplit(text)
            parts.port  # noqa: B018  (reading it checks it)
        except ValueError as error:
            raise ValueError(f"should be a URL: {error}") from None
        _check_redis_parts(parts)
        return value

    @field_validator("handler")
    @classmethod
    def _check_handler(cls, value: str) -> str:
        if not _HANDLER.fullmatch(value):
            raise ValueError("should be package.module:callable")
        return value

    @field_validator("partitions")
    @classmethod
    def _check_partitions(cls, value: str) -> str:
        if parse_partitions(value) == []:
            raise ValueError("should name at least one partition")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = []
        if self.dedup_ttl_s < self.event_ttl_s:
            problems.append(
                f"dedup_ttl_s={self.dedup_ttl_s}: should be at least event_ttl_s={self.event_ttl_s}"
                " (a replayed id must not outlive its marker)"
            )
        if self.retry_backoff_max_ms < self.retry_backoff_ms:
            problems.append(
                f"retry_backoff_max_ms={self.retry_backoff_max_ms}:"
                f" should be at least retry_backoff_ms={self.retry_backoff_ms}"
            )
        if self.restart_backoff_max_ms < self.restart_backoff_ms:
            problems.append(
                f"restart_backoff_max_ms={self.restart_backoff_max_ms}:"
                f" should be at least restart_backoff_ms={self.restart_backoff_ms}"
            )
        if 0 < self.worker_memory_max_bytes < LEAST_MEMORY:
            problems.append(
                f"worker_memory_max_bytes={self.worker_memory_max_bytes}: should be at least {LEAST_MEMORY},"
                " or 0 for no limit"
            )
        if self.dlq_topic == self.kafka_topic:
            problems.append(f"kafka_dlq_topic='{self.dlq_topic}': should differ from kafka_topic")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def dlq_topic(self) -> str:
        """Name of the dead-letter topic."""
        return self.kafka_dlq_topic or f"{self.kafka_topic}.dlq"

    def kafka_client(self) -> dict[str, Any]:
        """librdkafka properties that every client of this deployment starts from."""
        return {"bootstrap.servers": self.kafka_bootstrap_servers, **self.kafka_config}

    def partition_list(self, count: int) -> list[int]:
        """Partitions to own of a topic that has `count`, ascending.

        Raises ConfigError when one of them does not exist.
        """
        wanted = parse_partitions(self.partitions)
        if wanted is None:
            return list(range(count))
        if wanted[-1] >= count:
            raise ConfigError(
                f"partitions='{self.partitions}': topic {self.kafka_topic} has {count} partitions,"
                f" 0 to {count - 1}"
            )
        return wanted

    def revealed(self) -> dict[str, Any]:
        """All values as JSON can carry them, secrets in clear text: only for a child's standard input."""
        values = self.model_dump()
        return {k: v.get_secret_value() if isinstance(v, SecretStr) else v for k, v in values.items()}


def _check_redis_parts(parts: SplitResult) -> None:
    """What redis-py would pass over, or meet with an error of its own."""
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("should name the socket: unix:///path/to/redis.sock")
    elif not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError("should name the database by its number: redis://host:port/0")
    for name, values in parse_qs(parts.query, keep_blank_values=True).items():
        if name not in _REDIS_PARAMETERS:
            raise ValueError(f"should have no parameter {name!r}; there are {', '.join(_REDIS_PARAMETERS)}")
        if name == "db" and not all(value.isdecimal() for value in values):
            raise ValueError("should name the database by its number: ?db=0")
        if name == "ssl_cert_reqs" and not {"none", "optional", "required"}.issuperset(values):
            raise ValueError("should have ssl_cert_reqs none, optional or required")


def parse_partitions(text: str) -> list[int] | None:
    """Read `all` (None) or a list such as `0,1,4-7` (ascending, each once); ValueError says what is wrong."""
    if text.strip() == "all":
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError("should be all, or a list such as 0,1,4-7")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ValueError(f"should not run backwards: {first}-{last}")
        found.update(range(first, last + 1))
    return sorted(found)


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"linger": {"ms": 5}}` (how TOML reads linger.ms = 5) and `{"linger.ms": 5}` are both meant."""
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat
