"""Where a supervisor is found on this host: its lock file and its control socket."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from eventproc.errors import ConfigError, EventprocError
from eventproc.settings import Settings

#: What fits into sockaddr_un on every system.
MAX_SOCKET_PATH_BYTES = 100


@dataclass(frozen=True, slots=True)
class RuntimePaths:
    """The files of one deployment's supervisor on this host."""

    lock: Path
    socket: Path

    @classmethod
    def of(cls, settings: Settings) -> RuntimePaths:
        """Named by what makes a deployment: topic, group, Kafka's address and the key prefix."""
        identity = (
            settings.kafka_topic,
            settings.kafka_group_id,
            settings.kafka_bootstrap_servers,
            settings.key_prefix,
        )
        name = "eventproc-" + _digest(*identity)
        wanted = settings.runtime_dir or os.environ.get("XDG_RUNTIME_DIR")
        folder = Path(wanted) if wanted else _own_folder()
        if len(os.fsencode(folder / f"{name}.sock")) > MAX_SOCKET_PATH_BYTES:
            name = "eventproc-" + _digest(*identity, str(folder.absolute()))
            folder = Path("/tmp") / _own_folder().name
        return cls(folder / f"{name}.lock", folder / f"{name}.sock")


class SupervisorLock:
    """Held by the one supervisor of a deployment on this host; goes with the process."""

    def __init__(self, paths: RuntimePaths, settings: Settings) -> None:
        """Take it; EventprocError names the process that has it, ConfigError a folder that cannot be used."""
        _make_folder(paths.lock.parent)
        self._path = paths.lock
        self._fd = self._take(settings)
        while not _is_file(self._fd, self._path):  # its last holder has removed it since we opened it
            os.close(self._fd)
            self._fd = self._take(settings)
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let the next one in. The file goes first: who opens it later makes a new one."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._fd)

    def _take(self, settings: Settings) -> int:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(
                f"runtime_dir: cannot write {self._path}: {error.strerror};"
                " set runtime_dir to a folder of yours"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise EventprocError(
                f"a supervisor for topic {settings.kafka_topic} and group {settings.kafka_group_id}"
                f" is already running on this host: pid {pid}; `eventproc-supervisor stop` ends it"
            ) from None
        return fd


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _own_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"eventproc-{os.getuid()}"


def _make_folder(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise
        except OSError as error:
            raise ConfigError(f"runtime_dir: cannot create {folder}: {error.strerror}") from None
    if not folder.is_dir():
        raise ConfigError(f"runtime_dir: {folder} is no folder")
    if folder.name == _own_folder().name and folder.lstat().st_uid != os.getuid():
        raise ConfigError(f"runtime_dir: {folder} belongs to another user; set runtime_dir")
