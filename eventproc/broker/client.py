"""What all Kafka clients share: their librdkafka properties, and what an error of Kafka's means."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # documented, not in __all__

from eventproc.errors import ConfigError, DependencyError, Transient
from eventproc.logs import LIBRDKAFKA
from eventproc.settings import Settings

#: librdkafka's own log lines go here.
LOG = logging.getLogger(LIBRDKAFKA)
_REPEAT_AFTER_S = 30.0
_REMEMBERED = 256


class _Quieten(logging.Filter):
    """Keeps librdkafka from saying the same thing at every attempt to connect."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "property and will be ignored" in text:  # kafka_config is for all kinds of clients
            return False
        text = text.partition(" (after ")[0]  # how long, and how often, differs each time
        if record.created - self._said.get(text, -_REPEAT_AFTER_S) < _REPEAT_AFTER_S:
            return False
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said[text] = record.created
        return True


LOG.addFilter(_Quieten())

#: What a query of offsets can ask for.
EARLIEST: Any = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]

#: Properties that eventproc's correctness rests on, and why; users' `kafka_config` may not set them.
PROTECTED: dict[str, str] = {
    "bootstrap.servers": "use the setting kafka_bootstrap_servers",
    "group.id": "use the setting kafka_group_id",
    "enable.auto.commit": "only what is final in Redis may be committed",
    "enable.auto.offset.store": "only what is final in Redis may be committed",
    "enable.partition.eof": "a gap closes at the end of the partition",
    "isolation.level": "aborted transactions must not be processed",
    "auto.offset.reset": "use the setting on_offset_out_of_range",
    "acks": "a dead letter counts once all replicas have it",
    "request.required.acks": "a dead letter counts once all replicas have it",
    "enable.idempotence": "the dead-letter topic must not be reordered or doubled by retries",
    "partitioner": "a user's events must lie in one partition for every kind of producer",
    "group.instance.id": "partitions are assigned by eventproc, not by Kafka",
}

#: For every client: notice a dead broker within seconds, and come back as fast.
_DEFAULTS: dict[str, Any] = {
    "client.id": "eventproc",
    "socket.keepalive.enable": True,
    "socket.timeout.ms": 10_000,
    "socket.nagle.disable": True,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
    "topic.metadata.refresh.fast.interval.ms": 100,
}

_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "access to the topic is denied; give this user READ and DESCRIBE",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "access to the group is denied; give this user READ on it",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "access to the cluster is denied; give this user the right",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check sasl.username and sasl.password in kafka_config",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "check sasl.mechanism in kafka_config",
    KafkaError.ILLEGAL_SASL_STATE: "check security.protocol in kafka_config",
    KafkaError._AUTHENTICATION: "check sasl.mechanism, sasl.username and sasl.password in kafka_config",
    KafkaError._SSL: "check security.protocol and ssl.ca.location in kafka_config",
    KafkaError.TOPIC_EXCEPTION: "the name is no valid topic name",
}

_MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}

#: librdkafka guesses so from what comes back; there is no code for it.
_PROTOCOL_HINTS = ("security.protocol", "PLAINTEXT broker listener")

_AWAY = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
}


def client_config(
    settings: Settings, defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """librdkafka properties of one client: defaults, then the user's `kafka_config`, then what is fixed.

    Raises ConfigError when `kafka_config` names a protected property.
    """
    for name, reason in PROTECTED.items():
        if name in settings.kafka_config:
            raise ConfigError(f"kafka_config may not set {name}: {reason}")
    return {**_DEFAULTS, **defaults, **settings.kafka_client(), **fixed}


def check_config(settings: Settings, error: KafkaException | ValueError | TypeError) -> ConfigError:
    """The error for properties that librdkafka refuses (unknown ones, wrong values, missing files)."""
    reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    return ConfigError(f"kafka_config {sorted(settings.kafka_config)}: {reason}")


def kafka_error(error: BaseException) -> KafkaError:
    """The KafkaError in a KafkaException."""
    found = error.args[0] if error.args else None
    if isinstance(found, KafkaError):
        return found
    return KafkaError(KafkaError._FAIL, str(error))


def is_away(error: KafkaError) -> bool:
    """Whether this error means that a broker cannot be reached, or not be talked to."""
    return error.code() in _AWAY


def is_missing(error: KafkaError) -> bool:
    """Whether this error means that the topic or partition does not exist."""
    return error.code() in _MISSING


def explain(error: KafkaError, what: str, address: str) -> DependencyError | ConfigError:
    """The error to raise for `error`, met while doing `what`: Transient, or ConfigError with its remedy."""
    text = f"{what}: {error.str()}"
    if remedy := _DENIED.get(error.code()):
        return ConfigError(f"{text} (Kafka at {address}): {remedy}")
    if is_missing(error):
        return ConfigError(f"{text} (Kafka at {address}): it does not exist")
    if any(hint in error.str() for hint in _PROTOCOL_HINTS):
        return ConfigError(f"{text} (Kafka at {address}): check security.protocol in kafka_config")
    return Transient(f"{text} (Kafka at {address})")
