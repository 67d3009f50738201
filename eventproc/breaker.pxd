"""Types of breaker.py where it is compiled."""


cdef class Breaker:
    cdef public bint open
    cdef public str reason
    cdef public object _max_ratio
    cdef public object _max_consecutive
    cdef public object _events
    cdef public object _in_a_row
    cdef public object _letters
    cdef public set _admitted

    cpdef succeeded(self, n)
