"""The machine's clocks. Contracts are in _clock.pyi."""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec


cdef int64_t _now_ms(clockid_t which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)  # cannot fail: both clocks are always there
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000


cdef int64_t monotonic_ms() noexcept nogil:
    return _now_ms(CLOCK_MONOTONIC)


cdef class MachineClock:
    def monotonic_ms(self):
        return monotonic_ms()

    def wall_ms(self):
        return _now_ms(CLOCK_REALTIME)
