"""Types of lanes.py where it is compiled."""


cdef class Lanes:
    cdef public bint _one_each
    cdef public object _line
    cdef public dict _apart
    cdef public object _ready
    cdef public list _timers
    cdef public object _count
    cdef public Py_ssize_t _turn

    cpdef Py_ssize_t ready(self) except -1
    cpdef enter(self, entry)
    cpdef enter_all(self, list entries)
    cpdef list take(self, Py_ssize_t most)
    cpdef list _take_line(self, Py_ssize_t most)
    cpdef fire(self, now_ms)
    cpdef next_due_ms(self)
    cpdef bint is_idle(self) except -1
