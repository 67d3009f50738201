"""Types of intake.py where it is compiled."""


cdef class Batch:
    cdef public list users
    cdef public list seqs
    cdef public list offsets
    cdef public list sizes
    cdef public list entries
    cdef public object end
    cdef public object tombstones
    cdef public list misrouted


cdef class Intake:
    cdef public object _partition
    cdef public object _partitions
    cdef public str _position_prefix
    cdef public object _validator
    cdef public bint _dead_letter_misrouted
    cdef public object _plain

    cpdef Batch take(self, list records, now_ms)
