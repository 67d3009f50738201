"""The monitor's socket; light, for the supervisor tries it before it starts anything."""

from __future__ import annotations

import errno
import socket

from eventproc.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """Bind the monitor's socket; ConfigError names the setting that must change."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"monitor_port={port}: the port is taken on {host}; choose another one, or 0 for any free one"
            ) from None
        reason = error.strerror or str(error)
        raise ConfigError(
            f"monitor_host={host}, monitor_port={port}: cannot listen there: {reason}"
        ) from None
