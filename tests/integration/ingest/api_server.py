"""The ingest API as an operator has it: the real command as a process, spoken to over sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Message
from prometheus_client.parser import text_string_to_metric_families

from eventproc.broker.admin import Admin
from eventproc.broker.reading import TopicReader
from eventproc.settings import Settings
from tests.integration.conftest import BrokerUnderTest
from tests.integration.supervised import ROOT, wait_for
from tests.redis_server import RedisServer

#: The real command, tied to the life of the test's process.
_ENTRY = """
from eventproc.spawn import die_with_parent
die_with_parent({parent})
from eventproc.cli.api import main
main()
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `json` is its body decoded."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        found: str = self.json["error"]
        return found


def event(user: str = "u", **fields: Any) -> dict[str, Any]:
    """A small event."""
    return {"userId": user, "type": "test", **fields}


class ApiServer:
    """One API process on a fresh topic. It is ended by force on `close`."""

    def __init__(self, broker: BrokerUnderTest, server: RedisServer, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.server = server
        self.redis: Any = server.client(decode_responses=True)
        self._chosen: dict[str, Any] = {
            "kafka_bootstrap_servers": broker.bootstrap,
            "kafka_config": broker.kafka_config,
            "kafka_topic": settings.get("kafka_topic") or broker.topics(2),
            "redis_url": server.url,
            "api_port": 0,
            **settings,
        }
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._log = (folder / "api.log").open("ab")

    @property
    def settings(self) -> Settings:
        return Settings(**self._chosen)

    def choose(self, **settings: Any) -> None:
        """Settings for the next start."""
        self._chosen |= settings

    # --- the process --------------------------------------------------------------------------------

    def start(self, *, ready: bool = True) -> Self:
        logged = len(self.log())
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EVENTPROC_")}
        for name, value in self._chosen.items():
            environ[f"EVENTPROC_{name.upper()}"] = (
                json.dumps(value) if isinstance(value, dict) else str(value)
            )
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENTRY.format(parent=os.getpid()), "start"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        if ready:
            self.logged(" ready ", logged)
            line = next(line for line in self.log()[logged:].splitlines() if " ready " in line)
            self.port = int(line.rpartition("port=")[2])
            wait_for(lambda: self.get("/health").status == 200, told="health")
        return self

    def log(self) -> str:
        return (self.folder / "api.log").read_text(errors="replace")

    def logged(self, text: str, after: int = 0) -> None:
        """Wait until the log has it; fails at once when the process ends."""

        def look() -> bool:
            if text in self.log()[after:]:
                return True
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return False

        wait_for(look, 60, f"{text!r} in\n{self.log()}")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ends(self, timeout_s: float = 40) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """TERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.ends()

    def close(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        self._log.close()
        print(self.log())  # shown when the test has failed

    # --- HTTP ---------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None, /, **headers: str) -> Answer:
        """One request on a connection of its own; `_` in a header's name stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            found = connection.getresponse()
            lowered = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, lowered, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, body: Any, path: str = "/events", **headers: str) -> Answer:
        """Post as JSON; bytes go as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, **{"Content_Type": "application/json"} | headers)

    def batch(self, events: Sequence[Any], **headers: str) -> Answer:
        return self.post({"events": list(events)}, "/events/batch", **headers)

    def results(self, events: Sequence[Any], **headers: str) -> list[dict[str, Any]]:
        """Results of a batch that was answered with 202."""
        answer = self.batch(events, **headers)
        assert answer.status == 202, answer
        found: list[dict[str, Any]] = answer.json["results"]
        return found

    def at_once(self, bodies: Sequence[Any], **headers: str) -> list[Answer]:
        """Post each of these, all at the same time."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.post(body, **headers), bodies))

    def connect(self) -> socket.socket:
        """For those who do not speak HTTP as they should."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def raw(self, data: bytes) -> bytes:
        """All that is answered to these bytes until the connection is closed."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric (without `eventproc_api_`)."""
        families = text_string_to_metric_families(self.get("/metrics").body.decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"eventproc_api_{name}" and labels.items() <= sample.labels.items()
        )

    # --- Kafka --------------------------------------------------------------------------------------

    def records(self) -> list[Message]:
        """Everything in the topic."""
        topic = self.settings.kafka_topic
        with Admin(self.settings) as admin:
            ranges = {number: (0, high) for number, (_low, high) in admin.watermarks(topic).items()}
        with TopicReader(self.settings) as reader:
            return list(reader.read(topic, ranges))

    def documents(self, *users: str) -> list[dict[str, Any]]:
        """Values of all records, or of these users'."""
        keys = [user.encode() for user in users]
        found = [record for record in self.records() if not keys or record.key() in keys]
        return [json.loads(record.value() or b"") for record in found]

    def ids(self, *users: str) -> list[str]:
        """Ids of all records, or of these users', as their values have them."""
        return [document["id"] for document in self.documents(*users)]


def read_all(sock: socket.socket) -> bytes:
    """Until the end of the connection, however it ends."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found
