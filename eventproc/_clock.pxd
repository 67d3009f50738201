"""What the other compiled modules use of this one."""

from libc.stdint cimport int64_t


cdef class MachineClock:
    cpdef int64_t monotonic_ms(self) except? -1
    cpdef int64_t wall_ms(self) except? -1
