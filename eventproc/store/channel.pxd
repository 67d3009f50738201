"""Types of channel.py where it is compiled."""

from eventproc.store.scripts cimport ScriptSet


cdef class _Pending:
    cdef public object request
    cdef public str script
    cdef public bytes packed


cdef class Channel:
    cdef public ScriptSet scripts
    cdef public object outages
    cdef public object errors
    cdef public str last_error
    cdef public bint refused
    cdef public object _settings
    cdef public object _clock
    cdef public object _jitter
    cdef public object _timeout_ms
    cdef public str _where
    cdef public object _connection
    cdef public object _socket
    cdef public object _poller
    cdef public object _reader
    cdef public bytearray _unsent
    cdef public object _pending
    cdef public object _expected
    cdef public object _done
    cdef public bint _failing
    cdef public long long down_since_ms
    cdef public long long _retry_at_ms
    cdef public object _backoff_ms
    cdef public long long _progress_ms
    cdef public object _loads_in_row

    cpdef long long silent_ms(self) except? -1
    cpdef Py_ssize_t pending(self) except -1
    cpdef submit(self, request)
    cpdef flush(self)
    cpdef list poll(self, double timeout_ms=*)
    cpdef bint _due(self) except -1
    cpdef _came_up(self)
    cpdef _send(self, _Pending item)
    cpdef _work(self, double wait_ms)
    cpdef bint _receive(self, double wait_ms) except -1
    cpdef bint _drain_socket(self) except -1
    cpdef _take_replies(self)
