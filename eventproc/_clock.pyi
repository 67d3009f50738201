"""The machine's clocks at C speed: one is read before every run of a handler."""

class MachineClock:
    """Tells the time; to wait is for `clock.SystemClock`."""

    def monotonic_ms(self) -> int:
        """Milliseconds that never run backwards, as `time.monotonic` counts them; for timeouts."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; for latency and for people."""
