"""How child processes are told what to do, named, and tied to the life of their parent."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, ClassVar, Self

_PR_SET_PDEATHSIG = 1
_GONE_STATES = ("Z", "X", "x")
_PARENT_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Spec:
    """What a child is to do; one JSON line on its standard input, so that no secret is in argv."""

    what: ClassVar[str]

    def dump(self) -> bytes:
        """The line that `read` takes."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, stream: IO[bytes]) -> Self:
        """Read the one line; ValueError when it is no spec."""
        line = stream.readline()
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ValueError(
                f"the {cls.what} is started by eventproc-supervisor, with its spec on standard input"
            )
        return cls(**values)


@dataclass(frozen=True, slots=True)
class WorkerSpec(Spec):
    """What a worker is to do.

    `settings` is `Settings.revealed()`. `partitions` is how many the topic has (0: not known). `slot` is
    the worker's page on the board at `board_fd`. `supervisor` is the identity of the process that spawned
    it. `takeover` claims the partition even from a live owner. `start_count` is 0 for the first start of
    this partition. `death` has the fields of an `effects.Death` that is to be recorded.
    """

    settings: dict[str, Any]
    partition: int
    partitions: int
    slot: int
    slots: int
    board_fd: int
    supervisor: str
    takeover: bool = False
    start_count: int = 0
    death: dict[str, Any] | None = None

    what: ClassVar[str] = "worker"


@dataclass(frozen=True, slots=True)
class MonitorSpec(Spec):
    """What the monitor is to show: page i of the board is the worker of `partitions[i]`."""

    settings: dict[str, Any]
    partitions: list[int]
    board_fd: int
    supervisor: str

    what: ClassVar[str] = "monitor"


@dataclass(frozen=True, slots=True)
class PreflightSpec(Spec):
    """What the preflight is to check."""

    settings: dict[str, Any]
    supervisor: str

    what: ClassVar[str] = "preflight"


@dataclass(frozen=True, slots=True)
class ApiSpec(Spec):
    """How the ingest API is to serve."""

    settings: dict[str, Any]
    supervisor: str

    what: ClassVar[str] = "API"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for good: `<host>:<pid>:<start>`; a pid that is used again has another start."""

    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.start}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str()` wrote; ValueError when it is something else."""
        host, pid, start = text.split(":")
        return cls(host, int(pid), start)

    @classmethod
    def of(cls, pid: int) -> Self:
        """Identity of a process of this host."""
        return cls(host_name(), pid, _start_of(pid) or "0")

    @classmethod
    def own(cls) -> Self:
        """Identity of this process."""
        return cls.of(os.getpid())


def is_gone(identity: str) -> bool:
    """Whether that process is known to be dead: it was of this host, and is no more.

    False when it lives, when it is of another host (nobody can tell), and for text that is no identity.
    """
    try:
        process = ProcessIdentity.parse(identity)
    except ValueError:
        return False
    if process.host != host_name():
        return False
    start = _start_of(process.pid)
    if start is None:
        return not _answers(process.pid)  # no /proc, or it shows only one's own processes
    return start != process.start


def owner_token(supervisor: str, partition: int, random: str) -> str:
    """Who owns a partition, as Redis keeps it: unique for each start of a worker."""
    return f"{supervisor}/{partition}/{random}"


def owner_supervisor(token: str) -> str:
    """The supervisor's identity in an owner token; empty when it is something else."""
    parts = token.rsplit("/", 2)
    return parts[0] if len(parts) == 3 else ""


@cache
def host_name() -> str:
    """This host, the same over reboots: its name, and a digest of its machine id and pid namespace.

    The namespace is in it because a pid means nothing in another container that shares the name.
    """
    digest = hashlib.sha256()
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            digest.update(Path(path).read_bytes().strip())
            break
        except OSError:
            continue
    try:
        digest.update(os.readlink("/proc/self/ns/pid").encode())
    except OSError:
        digest.update(sys.platform.encode())
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "localhost"
    return f"{name}-{digest.hexdigest()[:8]}"


def die_with_parent(expected_ppid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    """Make this process get `sig` when its parent ends; exits at once when the parent is gone already.

    Call it first thing in a child's main thread, with the pid of the process that spawned it.
    """
    if not _set_death_signal(sig):
        threading.Thread(target=_watch_parent, args=(expected_ppid, sig), daemon=True).start()
    if os.getppid() != expected_ppid:
        os._exit(1)


_AUTOGROUP = Path("/proc/self/autogroup")


def give_session_way(autogroup: Path = _AUTOGROUP) -> bool:
    """Give the session of this process, which it has for itself, its niceness; False: try again later.

    Unless autogroups are switched off, Linux shares the processors among sessions, and niceness counts only
    within one of them (sched(7)). Of those who are not root the kernel takes one such change in 100 ms.
    """
    try:
        autogroup.write_text(str(os.nice(0)))
    except OSError as error:
        return error.errno != errno.EAGAIN  # else there are no autogroups
    return True


def parent_of(identity: str) -> int:
    """The pid in an identity, for `die_with_parent`."""
    return ProcessIdentity.parse(identity).pid


def nameless_file(label: str) -> int:
    """Descriptor of an empty file in memory without a name, which goes with its last user."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label)
    fd, path = tempfile.mkstemp(prefix=f"{label}-")
    os.unlink(path)
    return fd


def close_on_exec(fds: Iterable[int]) -> None:
    """Keep inherited descriptors from going on to grandchildren."""
    for fd in fds:
        os.set_inheritable(fd, False)


def _set_death_signal(sig: signal.Signals) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return int(prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)) == 0


def _watch_parent(expected_ppid: int, sig: signal.Signals) -> None:
    pause = threading.Event()
    while os.getppid() == expected_ppid:
        pause.wait(_PARENT_POLL_S)
    os.kill(os.getpid(), sig)


@cache
def _boot() -> str:
    """This boot, so that ticks since boot are not mistaken for those of an earlier one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"


def _start_of(pid: int) -> str | None:
    """Boot and ticks at which a process of this host started; "" for a dead one that nobody has waited for
    yet, None when there is none to be seen.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    if fields[0] in _GONE_STATES:
        return ""
    return f"{_boot()}-{fields[19]}"


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
