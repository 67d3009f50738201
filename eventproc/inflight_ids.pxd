"""Types of inflight_ids.py where it is compiled."""


cdef class InflightIds:
    cdef public dict _ids
    cdef public dict _waiters

    cpdef Py_ssize_t take_all(self, list entries, Py_ssize_t at, now_ms, list held_ms) except -1
    cpdef list free_all(self, list entries)
