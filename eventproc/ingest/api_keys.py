"""API keys from a file; only their digests are kept in memory."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from eventproc.errors import ConfigError
from eventproc.ingest.refusal import Refusal

_BEARER = b"bearer "


class ApiKeys:
    """The keys that POST needs; without a file, none is needed."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError when the file cannot be read, or holds no key."""
        self._path = path
        self._digests: list[bytes] = []
        self.reload()

    def reload(self) -> int:
        """Read the file again, and count its keys. Raises ConfigError; the former keys stand then."""
        if self._path:
            self._digests = _read(self._path)
        return len(self._digests)

    def check(self, headers: list[tuple[bytes, bytes]]) -> str:
        """The digest of the key that a request presents ("" when none is needed). Raises Refusal (401).

        All keys are compared, in constant time, so that the answer's time tells nothing about them.
        """
        if not self._path:
            return ""
        given = hashlib.sha256(_presented(headers)).digest()
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, given)
        if known:
            return given.hex()
        raise Refusal(
            401,
            "an API key is needed: Authorization: Bearer <key>, or X-Api-Key: <key>",
            reason="unauthorized",
            headers=((b"www-authenticate", b"Bearer"),),
            close=True,
        )


def _presented(headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return b""


def _read(path: str) -> list[bytes]:
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"api_keys_file {path!r}: {error.strerror}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
    if not keys:
        raise ConfigError(f"api_keys_file {path!r}: there is no key in it, one a line")
    return [hashlib.sha256(key).digest() for key in keys]
