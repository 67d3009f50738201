"""What the other compiled modules use of this one, and what it takes to know its types."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum:
    AGE = 0  # which queue: every lane behind a gap, by offset of its lowest item (= by its arrival)
    DUE = 1  # those of them whose deadline has not been reported, by deadline


cdef struct Item:  # its payload is _payloads[lane][seq]
    int64_t seq
    int64_t offset
    int64_t arrival_ms
    int64_t size_bytes


cdef struct Lane:
    PyObject* user  # the _User, kept alive by _by_name
    Item* heap  # by seq
    Py_ssize_t count
    Py_ssize_t capacity
    int64_t bytes
    int64_t base_ms  # time before this does not count for the deadline (rearm)
    Py_ssize_t at[2]  # place in each queue, -1 when not there
    Py_ssize_t next_free


cdef struct Node:
    int64_t key
    int64_t offset  # of the lowest item: breaks ties, and no two lanes share one
    Py_ssize_t lane


cdef struct Queue:
    Node* nodes
    Py_ssize_t count
    int which


@cython.final
cdef class Arrivals:
    cdef readonly list ready
    cdef readonly list below
    cdef readonly list occupied
    cdef readonly list jumped
    cdef readonly list unknown
    cdef readonly list evicted


@cython.final
cdef class _User:
    cdef str name
    cdef int64_t expected
    cdef Py_ssize_t lane  # -1: nothing parked
    cdef PyObject* older  # list of idle users, in a ring through _idle; NULL: not idle
    cdef PyObject* newer
    cdef uint32_t inflight  # released, not finished
    cdef uint8_t loaded
    cdef uint8_t closed
    cdef uint8_t adopt


@cython.final
cdef class ReorderBuffer:
    cdef readonly int64_t position
    cdef readonly Py_ssize_t parked
    cdef readonly int64_t parked_bytes

    cdef int64_t _gap_timeout_ms
    cdef int64_t _max_seq_jump
    cdef int64_t _max_parked_per_user
    cdef int64_t _max_parked
    cdef int64_t _max_parked_bytes
    cdef int64_t _max_users

    cdef dict _by_name
    cdef _User _idle  # sentinel: newer is the least recently used idle user, older the most recently used

    cdef list _payloads
    cdef Lane* _lanes
    cdef Py_ssize_t _lane_capacity
    cdef Py_ssize_t _free_lane  # first of a chain through next_free, -1: none
    cdef Queue _queues[2]
    cdef Py_ssize_t _behind_gap  # items in the lanes of AGE: the caps are judged by these
    cdef int64_t _behind_gap_bytes
    cdef Py_ssize_t _overfull_users  # lanes of AGE above the cap per user
    cdef int64_t _base_ms  # time before this does not count for any deadline (restart_timers)

    cdef int64_t* _ring
    cdef uint8_t* _done
    cdef Py_ssize_t _ring_capacity  # a power of two
    cdef Py_ssize_t _ring_start
    cdef Py_ssize_t _ring_count
    cdef Py_ssize_t _unsettled

    cdef int64_t* _scratch  # a batch's numbers, converted and checked before anything is changed
    cdef Py_ssize_t _scratch_capacity

    cdef int _arrive(
        self, Arrivals out, object name, object key, object item, int64_t* numbers, int64_t now
    ) except -1
    cdef int _park(self, _User user, Arrivals out, object key, object item, Item record) except -1
    cdef int _judge_parked(self, _User user, Arrivals out) except -1
    cdef int _take_lane(self, _User user) except -1
    cdef void _free_user_lane(self, _User user)
    cdef int _add_lanes(self) except -1
    cdef int _grow_heap(self, Lane* lane) except -1
    cdef void _unpark(self, Lane* lane, Item item) noexcept
    cdef int _release_run(self, _User user, dict payloads, Arrivals out) except -1
    cdef int _release(self, _User user, Arrivals out) except -1
    cdef void _settle_lane(self, _User user)
    cdef int64_t _deadline(self, Lane* lane) noexcept
    cdef void _watch(self, Py_ssize_t at) noexcept
    cdef void _unwatch(self, Py_ssize_t at) noexcept
    cdef _User _user_of(self, Py_ssize_t lane)
    cdef str _choose(self, Py_ssize_t at, int64_t* count, int64_t* size_bytes)
    cdef int _unfinish(self, list users, Py_ssize_t count) except -1
    cdef void _join_idle(self, _User user) noexcept
    cdef void _leave_idle(self, _User user) noexcept
    cdef void _touch(self, _User user) noexcept
    cdef int _evict(self, Arrivals out) except -1
    cdef int _mark_done(self, list offsets, Py_ssize_t* marked) except -1
    cdef void _unmark_done(self, Py_ssize_t count) noexcept
    cdef Py_ssize_t _find_offset(self, int64_t offset, Py_ssize_t guess) noexcept
    cdef int _read_offset(self, object value, int64_t lowest, int64_t* out) except -1
    cdef void _append_offset(self, int64_t offset) noexcept
    cdef int _reserve_ring(self, Py_ssize_t more) except -1
    cdef int _reserve_scratch(self, Py_ssize_t count) except -1

    cpdef next_deadline_ms(self)
    cpdef floor(self)
    cpdef unfinalized(self)
    cpdef overfull(self)
    cpdef due(self, now_ms)
    cpdef advance(self, position)


cdef bint plain(object text) noexcept
cdef int64_t partition_for(str user, int64_t partitions) except -1
