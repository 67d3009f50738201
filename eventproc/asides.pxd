"""Types of asides.py where it is compiled."""


cdef class Asides:
    cdef public dict foreign
    cdef public dict _by
    cdef public object _found
    cdef public dict _asides
