"""A real single-node Apache Kafka (KRaft) for tests: `python -m tests.kafka_server fetch | start`.

The jars come from Maven (tests/kafka/pom.xml names the release) and are kept outside the checkout, in
`${XDG_CACHE_HOME:-~/.cache}/eventproc/kafka-<version>`. Needs `java` (17 or newer); `mvn` only to fetch.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.ports import free_port

_POM = Path(__file__).with_name("kafka") / "pom.xml"
_FETCH_TIMEOUT_S = 600
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
#: Ties the JVM to its parent, then becomes it: the signal on the parent's death survives exec.
_LAUNCH = (
    "import os, sys; from eventproc.spawn import die_with_parent; "
    "die_with_parent(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"
)
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")


class KafkaUnavailable(Exception):
    """A real Kafka cannot be had here; the message says what is missing."""


def version() -> str:
    """The Kafka release that pom.xml names."""
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", _POM.read_text())
    if found is None:
        raise KafkaUnavailable(f"{_POM} names no kafka.version")
    return found.group(1)


def cache_dir() -> Path:
    """Where this release's jars are, or will be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "eventproc" / f"kafka-{version()}"


def fetch() -> Path:
    """The folder with the jars, fetched if need be; raises KafkaUnavailable when that cannot be done."""
    target = cache_dir()
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable(
            f"mvn is not on PATH, and {target} does not exist: install Maven to fetch Kafka"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        jars = Path(temporary) / "jars"
        command = [maven, "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={jars}", "-DincludeScope=runtime"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise KafkaUnavailable(f"mvn did not finish within {_FETCH_TIMEOUT_S} s") from error
        if done.returncode != 0 or not any(jars.glob("kafka_*.jar")):
            output = (done.stdout + done.stderr).strip()[-2000:]
            raise KafkaUnavailable(
                f"mvn could not fetch Kafka {version()} (exit {done.returncode}):\n{output}"
            )
        try:
            jars.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
    return target


def why_not() -> str:
    """Why a real Kafka cannot be started here; empty when it can (as far as tools tell)."""
    if shutil.which("java") is None:
        return "java is not on PATH: install a Java 17 runtime"
    if not cache_dir().is_dir() and shutil.which("mvn") is None:
        return f"mvn is not on PATH, and {cache_dir()} does not exist: install Maven"
    return ""


class KafkaServer:
    """One broker in a folder of its own; the same port and data over restarts, until `close()`.

    Start it from a thread that lives on: the JVM is killed when that thread ends.
    """

    def __init__(self, *, port: int = 0, overrides: dict[str, str] | None = None) -> None:
        self.port = port or free_port()
        self.controller_port = free_port()
        self.overrides = overrides or {}
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("Kafka is not running: call start()")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="eventproc-kafka-"))
        return self._folder

    def start(self) -> Self:
        """Start, and return when a client gets an answer; KafkaUnavailable with the log when it does not."""
        if reason := why_not():
            raise KafkaUnavailable(reason)
        if self.alive:
            return self
        jars = fetch()
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(jars)
        self._log = (self.folder / "kafka.log").open("ab")
        self._process = self._java(jars, ["kafka.Kafka", str(self.folder / "server.properties")], self._log)
        self._await_ready()
        return self

    def stop(self) -> None:
        """Shut down in order; the data stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Die at once; the data stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop if running, then start on the same port and data."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill and remove the data."""
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def log_tail(self) -> str:
        path = self.folder / "kafka.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _properties(self) -> dict[str, str]:
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self.controller_port}",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "log.retention.ms": "-1",
            "log.retention.check.interval.ms": "3600000",
            "log.cleaner.dedupe.buffer.size": "2097152",
            "log.cleaner.threads": "1",
            "log.flush.offset.checkpoint.interval.ms": "1000",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "broker.session.timeout.ms": "3000",  # a restarted broker waits until its former self is given up
            "broker.heartbeat.interval.ms": "500",
            **self.overrides,
        }

    def _format(self, jars: Path) -> None:
        lines = [f"{name}={value}" for name, value in self._properties().items()]
        path = self.folder / "server.properties"
        path.write_text("\n".join(lines) + "\n")
        # Kafka's ids are 22 characters of URL-safe base64 and must not look like an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        args = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(path)]
        with (self.folder / "format.log").open("w+b") as log:
            process = self._java(jars, args, log)
            if process.wait(timeout=_START_TIMEOUT_S) != 0:
                log.seek(0)
                output = log.read().decode(errors="replace")[-3000:]
                raise KafkaUnavailable(f"formatting Kafka's storage failed:\n{output}")

    def _java(self, jars: Path, args: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        java = ["java", *_JVM, "-cp", f"{jars}/*", *args]
        command = [sys.executable, "-c", _LAUNCH, str(os.getpid()), *java]
        return subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle
        )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        client = AdminClient(
            {"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 100}
        )
        while time.monotonic() < deadline:
            if not self.alive:
                raise KafkaUnavailable(f"Kafka ended while starting:\n{self.log_tail()}")
            try:
                if client.list_topics(timeout=0.5).brokers:
                    return
            except KafkaException:
                continue
        raise KafkaUnavailable(f"Kafka did not answer within {_START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def _end(self, sig: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(sig)
                process.send_signal(signal.SIGCONT)
            try:
                process.wait(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None


def _serve(port: int) -> int:
    stopped = threading.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda *_: stopped.set())
    with KafkaServer(port=port) as server:
        print(f"Kafka {version()} is ready on {server.bootstrap} (data in {server.folder})", flush=True)
        print("Ctrl-C stops it and removes its data.", flush=True)
        while not stopped.wait(0.5):
            if not server.alive:
                print(f"Kafka ended by itself:\n{server.log_tail()}", file=sys.stderr)
                return 1
        server.stop()
    print("Kafka stopped.")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kafka_server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fetch the jars, once")
    start = commands.add_parser("start", help="run a broker in the foreground")
    start.add_argument("--port", type=int, default=0, help="port to listen on; 0: any free one")
    options = parser.parse_args(argv)
    try:
        if options.command == "fetch":
            print(fetch())
            return 0
        return _serve(options.port)
    except KafkaUnavailable as error:
        print(f"kafka: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
