"""Types of suspects.py where it is compiled."""


cdef class Suspects:
    cdef public dict _known
    cdef public object turn
