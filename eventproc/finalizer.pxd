"""Types of finalizer.py where it is compiled."""

from eventproc._reorder cimport ReorderBuffer
from eventproc.asides cimport Asides
from eventproc.effects cimport Finalize, Finalized
from eventproc.lanes cimport Lanes
from eventproc.ownership cimport Ownership
from eventproc.settler cimport Settler


cdef class Written:
    cdef public list freed
    cdef public list opened
    cdef public list rejoined
    cdef public list final


cdef class Batch:
    cdef public list entries
    cdef public dict groups
    cdef public list loose
    cdef public list letters


cdef class Finalizer:
    cdef public Py_ssize_t _batch_max
    cdef public ReorderBuffer _buffer
    cdef public Lanes _lanes
    cdef public Settler _settler
    cdef public Asides _asides
    cdef public Ownership _ownership
    cdef public object _meter
    cdef public object _conflict
    cdef public object done
    cdef public object acked_floor
    cdef public set has_next
    cdef public set sparse
    cdef public object _gaps
    cdef public Finalize _under_way
    cdef public object _sent_ms

    cpdef bint busy(self) except -1
    cpdef add_gaps(self, list gaps)
    cpdef step(self, now_ms, idle)
    cpdef Batch _collect(self)
    cpdef on_finalized(self, Finalize request, Finalized reply, now_ms, wall_ms)
    cpdef _observe(self, dict counts, list latencies_ms)
