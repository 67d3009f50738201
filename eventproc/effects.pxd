"""Types of effects.py where it is compiled: of the requests and replies that every batch leads to."""


cdef class LoadUsers:
    cdef public list users


cdef class Acquire:
    cdef public object epoch
    cdef public str owner
    cdef public list entries


cdef class Acquired:
    cdef public str status
    cdef public list verdicts
    cdef public dict finals
    cdef public dict foreign
    cdef public object expiry_ms


cdef class Finalize:
    cdef public object epoch
    cdef public str owner
    cdef public object rev
    cdef public object floor
    cdef public object unfinalized
    cdef public list groups
    cdef public list loose
    cdef public list letters

    cpdef list entries(self)


cdef class Finalized:
    cdef public str status
    cdef public object floor
    cdef public dict refused
    cdef public dict foreign
    cdef public set not_dense


cdef class Commit:
    cdef public object offset


cdef class Run:
    cdef public list entries
