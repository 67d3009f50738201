"""Types of gaps.py where it is compiled."""

from eventproc._reorder cimport ReorderBuffer


cdef class GapKeeper:
    cdef public ReorderBuffer _buffer
    cdef public dict _reports
    cdef public object _reported
    cdef public list _due
    cdef public list _probing
    cdef public list _barriers
    cdef public dict _deferred_due
    cdef public dict _deferred_early
    cdef public dict _closing

    cpdef bint expire(self, now_ms) except -1
    cpdef list close_read(self)
    cpdef list close_deferred(self)
