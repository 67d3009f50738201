"""Types of ownership.py where it is compiled."""


cdef class Ownership:
    cdef public object _settings
    cdef public object _death
    cdef public str _name
    cdef public str owner
    cdef public bint owned
    cdef public object _may_take
    cdef public bint _force
    cdef public str _state
    cdef public object _offsets
    cdef public object _live_floor
    cdef public str _taken_over
    cdef public object _again_ms
    cdef public bint _doubted
    cdef public str standby_for
    cdef public object epoch
    cdef public object rev
    cdef public object baseline
