"""Types of metrics.py where it is compiled."""


cdef class Page:
    cdef public object _words
    cdef long long[::1] _at
    cdef public object running

    cpdef inc(self, str metric, n=*, str label=*)
    cpdef set(self, str metric, value)
    cpdef get(self, str metric, str label=*)
    cpdef observe(self, str metric, values)
    cpdef beat(self, long long now_ms)
