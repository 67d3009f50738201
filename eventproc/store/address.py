"""Where Redis is, from the settings: connection options, and a description that is safe to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.connection import parse_url

from eventproc.errors import ConfigError
from eventproc.settings import Settings


def connection_options(settings: Settings) -> dict[str, Any]:
    """Arguments for a redis-py connection, by redis-py's own reading of `redis_url`.

    The password file is read each time, so that a changed password is used by the next connection.
    Raises ConfigError for a URL or password file that cannot be used.
    """
    try:
        options: dict[str, Any] = dict(
            parse_url(settings.redis_url.get_secret_value())  # type: ignore[no-untyped-call]
        )
    except ValueError as error:
        raise ConfigError(
            f"redis_url {describe(settings)!r}: {error}; use redis://, rediss:// or unix://"
        ) from None
    if settings.redis_password_file:
        try:
            lines = Path(settings.redis_password_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"redis_password_file {settings.redis_password_file!r}: {error}") from None
        if not lines or not lines[0]:
            raise ConfigError(f"redis_password_file {settings.redis_password_file!r}: first line is empty")
        options["password"] = lines[0]
    return options


def describe(settings: Settings) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
