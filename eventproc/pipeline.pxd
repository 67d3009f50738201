"""Types of pipeline.py where it is compiled."""

from eventproc._reorder cimport Arrivals, ReorderBuffer
from eventproc.asides cimport Asides
from eventproc.breaker cimport Breaker
from eventproc.effects cimport Acquire, Acquired, Finalize, Finalized, LoadUsers, Run
from eventproc.finalizer cimport Finalizer
from eventproc.gaps cimport GapKeeper
from eventproc.inflight_ids cimport InflightIds
from eventproc.intake cimport Intake
from eventproc.lanes cimport Lanes
from eventproc.ownership cimport Ownership
from eventproc.settler cimport Settler
from eventproc.suspects cimport Suspects


cdef class Pipeline:
    cdef public object _settings
    cdef public object _partition
    cdef public object _meter
    cdef public object _random
    cdef public object _warn
    cdef public Intake _intake
    cdef public bint _by_event
    cdef public Ownership ownership
    cdef public Breaker _breaker
    cdef public Suspects _suspects
    cdef public Py_ssize_t _concurrency
    cdef public bint _batches
    cdef public Py_ssize_t _most_at_once
    cdef public Py_ssize_t _most_ahead
    cdef public set _tasks
    cdef public set _strays
    cdef public bint draining
    cdef public bint drained
    cdef public bint _suspended
    cdef public ReorderBuffer buffer
    cdef public GapKeeper _gap_keeper
    cdef public Asides _asides
    cdef public bint _alone
    cdef public Py_ssize_t _behind_tasks
    cdef public object _renewing
    cdef public object _renewed_ms
    cdef public Lanes _lanes
    cdef public InflightIds _ids
    cdef public Settler _settler
    cdef public Finalizer _finalizer
    cdef public object _done
    cdef public list _held
    cdef public list _unknown
    cdef public LoadUsers _loading
    cdef public object _waiting
    cdef public Acquire _acquiring
    cdef public Run _running
    cdef public double _run_ms
    cdef public object _release
    cdef public bint _released
    cdef public object _committed
    cdef public object _committed_ms
    cdef public object _idle_reading_ms
    cdef public bint _paused

    cpdef bint wants_records(self) except -1
    cpdef bint is_full(self) except -1
    cpdef bint is_idle(self) except -1
    cpdef next_deadline_ms(self)
    cpdef list step(self, now_ms)
    cpdef on_records(self, list records, now_ms)
    cpdef _load(self, list requests)
    cpdef _take(self, Arrivals arrivals, now_ms)
    cpdef _take_ready(self, list entries, now_ms)
    cpdef _wait(self, list entries)
    cpdef _acquire(self, list requests)
    cpdef on_acquired(self, Acquire request, Acquired reply, now_ms)
    cpdef _run(self, now_ms, list requests)
    cpdef list _leave_out_asides(self, list entries)
    cpdef on_ran(self, Run request, list outcomes, took_ms, now_ms)
    cpdef Py_ssize_t _backlog(self) except -1
    cpdef _finalize(self, now_ms, list requests)
    cpdef on_finalized(self, Finalize request, Finalized reply, now_ms, wall_ms)
    cpdef _watch_reading(self, now_ms)
    cpdef _expire(self, now_ms, list requests)
    cpdef _commit(self, now_ms, list requests)
    cpdef bint _lost(self, str status) except -1
