"""Answers that are no success, raised from wherever they are found out."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """The request is answered with `status` and `{"error": …}`.

    `reason` is its name in the metrics. `more` goes into the body beside the error. `close` ends the
    connection, because the body was not read.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        reason: str = "invalid",
        retry_after_s: int = 0,
        close: bool = False,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        **more: Any,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.close = close
        self.headers = headers
        self.more = more

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        return {"error": self.error, **self.more}


def unavailable(error: str, reason: str, **more: Any) -> Refusal:
    """503: to be tried again in a second."""
    return Refusal(503, error, reason=reason, retry_after_s=1, **more)
