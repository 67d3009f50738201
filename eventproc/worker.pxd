"""Types of worker.py where it is compiled."""

from eventproc.broker.consumer cimport PartitionConsumer
from eventproc.effects cimport Acquire, Commit, Finalize, LoadUsers, Run
from eventproc.metrics cimport Page
from eventproc.pipeline cimport Pipeline
from eventproc.store.channel cimport Channel


cdef class Worker:
    cdef public Pipeline pipeline
    cdef public object _settings
    cdef public object _partition
    cdef public Page _page
    cdef public object _clock
    cdef public object _crash
    cdef public object _log
    cdef public object _rarely
    cdef public PartitionConsumer _consumer
    cdef public object _producer
    cdef public Channel _channel
    cdef public object _runner
    cdef public object _keeper
    cdef public object _tasks
    cdef public bint _stop_asked
    cdef public long long _drain_until_ms
    cdef public long long _offsets_at_ms
    cdef public long long _end_asked_ms
    cdef public bint _away
    cdef public object _stalls
    cdef public bint _in_trouble
    cdef public dict _refused
    cdef public object _pointers
    cdef public object _dead_letter
    cdef public bint _reading_paused
    cdef public long long _wanted_ms
    cdef public long long _published_ms
    cdef public long long _looped_ms
    cdef public long long _handlers_ms
    cdef public object _commits
    cdef public bint _gives_way
    cdef public object _redis_errors
    cdef public object _kafka_errors

    cpdef bint _finished(self) except -1
    cpdef bint _runs_beside(self) except -1
    cpdef _turn(self)
    cpdef bint _advance(self, long long now_ms) except -1
    cpdef bint _carry_out_all(self, list requests) except -1
    cpdef _watch(self, long long now_ms)
    cpdef long long _own_ms(self) except? -1
    cpdef long long _idle_wait_ms(self) except -1
    cpdef Py_ssize_t _take_records(self, long long wait_ms) except -1
    cpdef bint _may_consume(self) except -1
    cpdef bint _take_deliveries(self) except -1
    cpdef bint _take_end(self) except -1
    cpdef bint _take_ended(self) except -1
    cpdef bint _take_replies(self, long long wait_ms) except -1
    cpdef _take_reply(self, request, reply)
    cpdef _carry_out(self, request)
    cpdef _run_handler(self, Run request)
    cpdef _fetch_offsets(self, long long now_ms)
    cpdef _at(self, str point)
