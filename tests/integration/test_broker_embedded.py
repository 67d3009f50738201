"""The embedded broker's process: start, control, end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from eventproc.broker import embedded
from eventproc.broker.embedded import (
    EmbeddedBroker,
    MockCluster,
    Retention,
    check_not_dropped,
)
from eventproc.clock import SystemClock
from eventproc.errors import ConfigError, DependencyError
from eventproc.spawn import ProcessIdentity, is_gone

CLOCK = SystemClock()


def wait_until_gone(process: ProcessIdentity) -> None:
    deadline = CLOCK.monotonic_ms() + 10_000
    while not is_gone(str(process)):
        assert CLOCK.monotonic_ms() < deadline, f"process {process} lives on"
        CLOCK.sleep_ms(10)


def test_stop_ends_the_process() -> None:
    broker = EmbeddedBroker({"events": 2}).start()
    process = ProcessIdentity.of(broker.pid)
    assert not is_gone(str(process))
    assert broker.poll() is None
    broker.stop()
    assert is_gone(str(process))
    broker.stop()  # once more does no harm


def test_death_is_seen() -> None:
    with EmbeddedBroker({"events": 2}) as broker:
        os.kill(broker.pid, signal.SIGKILL)
        deadline = CLOCK.monotonic_ms() + 10_000
        while broker.poll() is None:
            assert CLOCK.monotonic_ms() < deadline
            CLOCK.sleep_ms(10)
        assert broker.poll() == -signal.SIGKILL


def test_interrupt_of_the_terminal_is_for_the_parent() -> None:
    with EmbeddedBroker({"events": 1}) as broker:
        os.kill(broker.pid, signal.SIGINT)
        broker.create_topic("still-serving", 1)
        assert os.getpgid(broker.pid) != os.getpgid(0)


def test_an_answer_that_is_late_is_not_taken_for_that_to_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with EmbeddedBroker({"events": 1}) as broker:
        with monkeypatch.context() as patched:
            patched.setattr(embedded, "_REPLY_TIMEOUT_MS", 100)
            os.kill(broker.pid, signal.SIGSTOP)
            for name in ("events", "slow"):
                with pytest.raises(DependencyError, match=f"does not answer to 'topic {name}:1' in 0.1 s"):
                    broker.create_topic(name, 1)
            os.kill(broker.pid, signal.SIGCONT)
        broker.create_topic("next", 1)
        with pytest.raises(ConfigError, match="cannot create topic slow"):
            broker.create_topic("slow", 1)  # it has been, in the meantime


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_dies_with_its_parent(sig: signal.Signals) -> None:
    program = (
        "from eventproc.broker.embedded import EmbeddedBroker\n"
        "import signal\n"
        "broker = EmbeddedBroker({'events': 1}).start()\n"
        "print(broker.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = ProcessIdentity.of(int(parent.stdout.readline()))
        parent.send_signal(sig)
    wait_until_gone(process)


def test_ends_with_its_standard_input() -> None:
    command = [sys.executable, "-m", "eventproc.broker.embedded", "--topics", "events:1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert done.stdout.startswith("ready 127.0.0.1:")


@pytest.mark.parametrize("name", ["with space", "", "x" * 250])
def test_bad_topic_name_is_named(name: str) -> None:
    with pytest.raises(DependencyError, match="is not <topic>:<partitions>"):
        EmbeddedBroker({name: 1}).start()


def test_topic_twice_is_refused() -> None:
    with (
        EmbeddedBroker({"events": 1}) as broker,
        pytest.raises(ConfigError, match=r"cannot create topic events.*exists"),
    ):
        broker.create_topic("events", 1)


def test_nothing_dropped_is_no_error() -> None:
    check_not_dropped(0, -1, "events", 0)
    check_not_dropped(7, 7, "events", 0)


def test_what_nobody_has_read_is_missed() -> None:
    with pytest.raises(
        DependencyError, match="first 7 records of events/0, of which this group has processed 6"
    ):
        check_not_dropped(7, 6, "events", 0)
    with pytest.raises(
        DependencyError, match="first 7 records of events/0, of which this group has processed 0"
    ):
        check_not_dropped(7, -1, "events", 0)


def test_what_the_group_has_committed_is_deleted_but_for_the_last_records() -> None:
    cluster = MockCluster()
    cluster.create_topic("events", 2)
    retention = Retention(cluster, "g", 1000)
    address = {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}
    producer = Producer(address)
    for _ in range(6000):
        producer.produce("events", b"x", partition=1)
    assert producer.flush(30) == 0
    consumer = Consumer({**address, "group.id": "g"})
    for committed, low in ((1000, 0), (3000, 2000), (3050, 2000), (4000, 3000)):
        consumer.commit(offsets=[TopicPartition("events", 1, committed)], asynchronous=False)
        retention.apply()
        assert consumer.get_watermark_offsets(TopicPartition("events", 1), 10) == (low, 6000)
        assert consumer.get_watermark_offsets(TopicPartition("events", 0), 10) == (0, 0)
    consumer.assign([TopicPartition("events", 1, 3000)])
    first = consumer.poll(10)
    assert first is not None
    assert first.error() is None
    assert first.offset() == 3000
    consumer.close()
