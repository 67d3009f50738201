"""Binding an HTTP socket; light, for the supervisor tries it before it starts anything."""

from __future__ import annotations

import errno
import socket

from eventproc.errors import ConfigError


def listen(host: str, port: int, what: str) -> socket.socket:
    """Bind the socket of `what` (monitor, api); ConfigError names the setting that must change."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{what}_port={port}: the port is taken on {host}; choose another one, or 0 for any free one"
            ) from None
        reason = error.strerror or str(error)
        raise ConfigError(f"{what}_host={host}, {what}_port={port}: cannot listen there: {reason}") from None
