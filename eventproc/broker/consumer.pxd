"""Types of consumer.py where it is compiled."""


cdef class PartitionConsumer:
    cdef public long long position
    cdef public long long committed
    cdef public bint down
    cdef public object errors
    cdef public str last_error
    cdef public object _settings
    cdef public str _topic
    cdef public object _partition
    cdef public object _clock
    cdef public str _name
    cdef public str _address
    cdef public long long _wanted
    cdef public bint _commit_failed
    cdef public long long _sent
    cdef public long long _sent_ms
    cdef public object _fatal
    cdef public bint _closed
    cdef public object _consumer
    cdef public object _query

    cpdef list consume(self, Py_ssize_t max_records, double timeout_s)
    cpdef commit(self, long long offset)
    cpdef _advance(self, first, last)
    cpdef _upkeep(self)
    cpdef _commit_if_due(self)
