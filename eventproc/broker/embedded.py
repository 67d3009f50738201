"""The embedded broker: librdkafka's mock cluster, in a process of its own.

For trying out and for tests; nothing outlives it. Its limits: a partition keeps 5 MiB or 100,000 message
sets and silently drops the oldest above that (`check_not_dropped`); topics cannot be created through the
protocol; a fetch gets one message set, and an empty one waits its full time even when data arrives. It goes
through all that a partition keeps for every fetch, so what the group has committed can be deleted
(`Retention`).
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from eventproc.clock import Clock, SystemClock
from eventproc.errors import ConfigError, DependencyError
from eventproc.server_process import ServerProcess
from eventproc.spawn import die_with_parent

#: Bytes of message sets (as produced, so compressed) that one partition keeps.
PARTITION_MAX_BYTES = 5 * 1024 * 1024
#: librdkafka properties that suit a client of the embedded broker; for `Settings.kafka_config`.
CLIENT_CONFIG: dict[str, str] = {"fetch.wait.max.ms": "10"}
_RETENTION_EVERY_MS = 1000
_COMMITTED_TIMEOUT_S = 1.0
_CLUSTER_ID = re.compile(r"^mockCluster")
_START_TIMEOUT_MS = 60_000  # of a machine that has much else to do
_REPLY_TIMEOUT_MS = 30_000
_RD_KAFKA_PRODUCER = 0
_TOPIC = re.compile(r"^([A-Za-z0-9._-]{1,249}):([1-9][0-9]{0,4})$")


def check_not_dropped(low: int, committed: int, topic: str, partition: int) -> None:
    """Raise DependencyError when an embedded broker has thrown away records that are still to be read.

    `low` is the partition's low watermark, `committed` the group's offset, -1 if it has none. On a real Kafka
    that may be retention's doing, so call this only for an embedded one.
    """
    if low > max(0, committed):
        raise DependencyError(
            f"the embedded broker has dropped the first {low} records of {topic}/{partition}, of which "
            f"this group has processed {max(0, committed)}: it keeps at most "
            f"{PARTITION_MAX_BYTES // 1024 // 1024} MiB of compressed records a partition, read or not, and "
            f"of what its own group has processed no more than embedded_keep_records, if that is set. "
            f"Produce fewer or smaller events, start it with embedded_keep_records=0, or use a real Kafka "
            f"(kafka_bootstrap_servers)"
        )


def is_embedded(cluster_id: str | None) -> bool:
    """Whether the cluster of that id (from its metadata) is an embedded broker."""
    return bool(cluster_id and _CLUSTER_ID.match(cluster_id))


class EmbeddedBroker(ServerProcess):
    """Starts the broker's process and holds it. `topics` maps names to partition counts.

    What `group` has committed is deleted, but for the last `keep_records` of a partition (0: all are kept).
    """

    _program = "eventproc.broker.embedded"

    def __init__(
        self, topics: Mapping[str, int], clock: Clock | None = None, *, group: str = "", keep_records: int = 0
    ) -> None:
        super().__init__("broker")
        self.bootstrap_servers = ""
        self._topics = dict(topics)
        self._group = group
        self._keep_records = keep_records
        self._clock = clock or SystemClock()
        self._owed = 0  # answers that have not come yet
        self._read = b""  # of the next one

    @property
    def client_config(self) -> dict[str, str]:
        """librdkafka properties that suit clients of this broker."""
        return dict(CLIENT_CONFIG)

    def start(self) -> Self:
        command = [sys.executable, "-m", self._program, "--parent", str(os.getpid())]
        command += ["--topics", ",".join(f"{name}:{count}" for name, count in self._topics.items())]
        command += [f"--group={self._group}", f"--keep-records={self._keep_records}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which still drains
        )
        self._owed, self._read = 0, b""
        line = self._read_line(_START_TIMEOUT_MS)
        if not line.startswith("ready "):
            process = self._process
            process.kill()
            output = process.stderr.read() if process.stderr else b""
            self.stop()
            reason = output.decode(errors="replace").strip().rpartition("\n")[2] or "no answer"
            raise DependencyError(f"the embedded broker did not start: {reason}")
        self.bootstrap_servers = line.removeprefix("ready ")
        return self

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic; ConfigError when it exists or its name is no topic name, DependencyError when the
        broker does not answer."""
        reply = self._order(f"topic {name}:{partitions}")
        if reply != "ok":
            raise ConfigError(f"the embedded broker cannot create topic {name}: {reply}")

    def _order(self, text: str) -> str:
        stdin = self._running().stdin
        if stdin is None:
            raise RuntimeError("the embedded broker has no control pipe")
        stdin.write(f"{text}\n".encode())
        self._owed += 1
        while True:
            reply = self._read_line(_REPLY_TIMEOUT_MS)
            if not reply:
                seconds = _REPLY_TIMEOUT_MS / 1000
                raise DependencyError(
                    f"the embedded broker (pid {self.pid}) does not answer to {text!r} in {seconds:g} s: "
                    f"it is stopped, or the machine is overloaded"
                )
            self._owed -= 1
            if not self._owed:  # else it is the answer to a command that was given up
                return reply

    def _read_line(self, timeout_ms: int) -> str:
        """The next line, "" if it does not come in time; what has come of it is kept."""
        stdout = self._running().stdout
        if stdout is None:
            return ""
        deadline = self._clock.monotonic_ms() + timeout_ms
        while not self._read.endswith(b"\n"):
            left = deadline - self._clock.monotonic_ms()
            if left <= 0 or not select.select([stdout], [], [], left / 1000)[0]:
                return ""
            byte = stdout.read(1)
            if not byte:
                return ""
            self._read += byte
        line, self._read = self._read, b""
        return line.decode(errors="replace").strip()


def _library() -> ctypes.CDLL:
    """The librdkafka that confluent-kafka uses; ConfigError when its mock cluster cannot be called."""
    import confluent_kafka.cimpl as extension

    tried = []
    for path in _candidates(str(extension.__file__)):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            tried.append(path)
            continue
        if hasattr(library, "rd_kafka_mock_cluster_new"):
            return library
        tried.append(path)
    raise ConfigError(
        f"no librdkafka with a mock cluster found (tried {', '.join(tried) or 'nothing'}): install "
        f"confluent-kafka from a wheel, or use a real Kafka instead of --embedded"
    )


def _candidates(extension: str) -> Iterable[str]:
    """Where librdkafka may be: what this process has loaded, what the wheel brought, what the system has."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        maps = ""
    yield from dict.fromkeys(re.findall(r"(/\S*librdkafka\S*)", maps))
    package = Path(extension).parent
    for folder in (package.with_name("confluent_kafka.libs"), package / ".dylibs"):
        yield from map(str, sorted(folder.glob("librdkafka*")))
    yield extension  # linked statically
    if found := ctypes.util.find_library("rdkafka"):
        yield found


class MockCluster:
    """Mock brokers in this process: one, or several that share the partitions."""

    def __init__(self, brokers: int = 1) -> None:
        self.topics: dict[str, int] = {}  # partitions of each
        self._library = library = _library()
        for name, result, arguments in (
            ("rd_kafka_conf_new", ctypes.c_void_p, []),
            (
                "rd_kafka_new",
                ctypes.c_void_p,
                [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
            ),
            ("rd_kafka_mock_cluster_new", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
            ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, [ctypes.c_void_p]),
            (
                "rd_kafka_mock_topic_create",
                ctypes.c_int,
                [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
            ),
            ("rd_kafka_err2str", ctypes.c_char_p, [ctypes.c_int]),
        ):
            function: Any = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        error = ctypes.create_string_buffer(512)
        handle = library.rd_kafka_new(_RD_KAFKA_PRODUCER, library.rd_kafka_conf_new(), error, len(error))
        if not handle:
            raise DependencyError(f"librdkafka: {error.value.decode(errors='replace')}")
        self._cluster = library.rd_kafka_mock_cluster_new(handle, brokers)
        if not self._cluster:
            raise DependencyError("librdkafka cannot open a port on 127.0.0.1 for its mock cluster")

    @property
    def bootstrap_servers(self) -> str:
        text: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return text.decode()

    def obey(self, order: str) -> str:
        """Carry out a line of standard input; what to answer. ConfigError when it cannot be."""
        verb, _, topic = order.partition(" ")
        if verb != "topic":
            raise ConfigError(f"unknown command {verb.strip()!r}")
        self.create_topic(*_parse_topic(topic))
        return "ok"

    def create_topic(self, name: str, partitions: int) -> None:
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if code != 0:
            raise ConfigError(f"topic {name}: {self._library.rd_kafka_err2str(code).decode()}")
        self.topics[name] = partitions

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete what lies below an offset; nothing with a librdkafka that is older than this function."""
        delete = getattr(self._library, "rd_kafka_mock_partition_delete_records", None)
        if delete is not None:
            delete.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64]
            delete(self._cluster, topic.encode(), partition, before)


class Retention:
    """Deletes what a group has committed, but for the last `keep_records` of each partition."""

    def __init__(self, cluster: MockCluster, group: str, keep_records: int) -> None:
        self._cluster = cluster
        self._keep_records = keep_records
        self._deleted: dict[tuple[str, int], int] = {}  # up to which offset
        config = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": group, "log_level": 0}
        self._consumer = Consumer(config)

    def apply(self) -> None:
        """Look once. A cluster that does not answer is asked again the next time."""
        partitions = [
            TopicPartition(topic, number)
            for topic, count in self._cluster.topics.items()
            for number in range(count)
        ]
        try:
            found = self._consumer.committed(partitions, _COMMITTED_TIMEOUT_S)
        except KafkaException:
            return
        for it in found:
            before = it.offset - self._keep_records
            place = (it.topic, it.partition)
            if it.error is None and before >= self._deleted.get(place, 0) + self._keep_records // 10:
                self._cluster.delete_records(*place, before)
                self._deleted[place] = before

    def run(self, clock: Clock) -> None:
        """For ever."""
        while True:
            clock.sleep_ms(_RETENTION_EVERY_MS)
            self.apply()


def _parse_topic(text: str) -> tuple[str, int]:
    match = _TOPIC.match(text.strip())
    if match is None:
        raise ConfigError(f"{text.strip()!r} is not <topic>:<partitions>")
    return match.group(1), int(match.group(2))


def main(argv: list[str] | None = None, make: Callable[[], MockCluster] = MockCluster) -> int:
    """Serve until standard input ends or TERM comes; each line `topic <name>:<partitions>` creates one."""
    parser = argparse.ArgumentParser(prog="python -m eventproc.broker.embedded", description=__doc__)
    parser.add_argument("--topics", default="", help="<name>:<partitions>[,…]")
    parser.add_argument("--parent", type=int, help="pid of the process to die with")
    parser.add_argument("--group", default="", help="delete what this group has committed")
    parser.add_argument(
        "--keep-records", type=int, default=0, help="but for so many of a partition; 0: keep all"
    )
    options = parser.parse_args(argv)
    if options.parent is not None:
        die_with_parent(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cluster = make()
        for text in filter(None, options.topics.split(",")):
            cluster.create_topic(*_parse_topic(text))
    except (ConfigError, DependencyError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.group and options.keep_records:
        retention = Retention(cluster, options.group, options.keep_records)
        threading.Thread(target=retention.run, args=(SystemClock(),), name="retention", daemon=True).start()
    print(f"ready {cluster.bootstrap_servers}", flush=True)
    _serve(cluster, sys.stdin.buffer)
    return 0


def _serve(cluster: MockCluster, control: IO[bytes]) -> None:
    while line := control.readline():
        try:
            print(cluster.obey(line.decode(errors="replace")), flush=True)
        except ConfigError as error:
            print(error, flush=True)


if __name__ == "__main__":
    sys.exit(main())
