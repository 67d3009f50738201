"""Shared with the other compiled modules; the meaning of the fields is in _entry.pyi."""

from libc.stdint cimport int64_t


cdef class Entry:
    cdef public int64_t offset
    cdef public object record
    cdef public str id
    cdef public str user
    cdef public int64_t seq
    cdef public str type
    cdef public object document
    cdef public object timestamp
    cdef public int64_t size
    cdef public str status
    cdef public int64_t attempts
    cdef public str error
    cdef public str reason
    cdef public bint letter
    cdef public object lane
    cdef public int64_t granted_ms
    cdef public int64_t lock_expiry_ms
    cdef public bint look
    cdef public int64_t arrived_ms
    cdef public bint passed
    cdef public bint held
    cdef public bint go


cdef class UserEffects:
    cdef public str user
    cdef public bint has_next
    cdef public bint dense
    cdef public object gaps
    cdef public list entries


cpdef event_of(Entry entry, partition)
cpdef bint is_ordinary(Entry entry)
