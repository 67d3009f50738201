"""Types of clock.py where it is compiled."""


cdef class SystemClock:
    cpdef long long monotonic_ms(self) except? -1
    cpdef long long wall_ms(self) except? -1
