"""Types of settler.py where it is compiled."""

from eventproc._reorder cimport ReorderBuffer
from eventproc.lanes cimport Lanes


cdef class Settler:
    cdef public ReorderBuffer _buffer
    cdef public Lanes _lanes
    cdef public object _warn
    cdef public list _settled
    cdef public set _held
    cdef public list _to_produce
    cdef public dict _producing
    cdef public object end

    cpdef _tell(self)
    cpdef floor(self)
    cpdef unfinalized(self)
    cpdef bint busy(self) except -1
    cpdef settle_all(self, list offsets)
    cpdef list produce(self)
