"""What the other compiled modules use of this one."""

from libc.stdint cimport int64_t


cdef class MachineClock:
    pass


cdef int64_t monotonic_ms() noexcept nogil
