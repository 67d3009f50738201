"""Types of scripts.py where it is compiled."""


cdef class Call:
    cdef readonly str script
    cdef readonly bytes packed


cdef class ScriptSet:
    cdef public dict scripts
    cdef public object keyspace
    cdef public str _topic
    cdef public object _partition
    cdef public object _lock_ttl_ms
    cdef public object _batches
    cdef public object _claims
    cdef public dict _encoders

    cpdef str lock(self, epoch, str owner)
    cpdef encode(self, request)


cpdef decode(request, reply)
cdef _acquired(request, reply)
cdef _finalized(request, reply)
cdef str _status(reply)
