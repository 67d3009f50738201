"""The reorder buffer: all per-user sequence state of one partition. Contracts are in _reorder.pyi.

Numbers live in C arrays, payloads in Python containers (so that the garbage collector sees them):

    _by_name   name -> _User; an idle user costs this entry and nothing else
    _lanes     one C struct per user with something parked: a min-heap of its parked seqs
    _payloads  the same index: dict seq -> item
    _queues    two heaps over the lanes that wait behind a gap: by age, and by pending deadline
    _ring      unsettled offsets, ascending, with a done flag each
"""

cimport cython
from cpython.dict cimport PyDict_DelItem, PyDict_GetItemWithError, PyDict_SetDefault, PyDict_SetItem
from cpython.list cimport PyList_Append, PyList_GET_ITEM
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_CheckExact
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memset

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    void* PyUnicode_DATA(object text)

from heapq import heappop, heappush

cdef int64_t MAX_SEQ = (<int64_t>1 << 53) - 1
cdef int64_t MAX_NUMBER = <int64_t>1 << 53  # bound of times and limits: their sums stay within int64

# --- C heaps ---------------------------------------------------------------------------------------


cdef void _push_item(Lane* lane, Item item) noexcept nogil:
    """Sift `item` in; the caller has made room."""
    cdef Py_ssize_t i = lane.count
    cdef Py_ssize_t up
    lane.count += 1
    while i > 0:
        up = (i - 1) >> 1
        if lane.heap[up].seq <= item.seq:
            break
        lane.heap[i] = lane.heap[up]
        i = up
    lane.heap[i] = item


cdef Item _pop_item(Lane* lane) noexcept nogil:
    """Take the lowest seq off; the lane is not empty."""
    cdef Item lowest = lane.heap[0]
    cdef Item last
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t down
    lane.count -= 1
    if lane.count == 0:
        return lowest
    last = lane.heap[lane.count]
    while True:
        down = 2 * i + 1
        if down >= lane.count:
            break
        if down + 1 < lane.count and lane.heap[down + 1].seq < lane.heap[down].seq:
            down += 1
        if last.seq <= lane.heap[down].seq:
            break
        lane.heap[i] = lane.heap[down]
        i = down
    lane.heap[i] = last
    return lowest


cdef int _by_offset(const void* a, const void* b) noexcept nogil:
    cdef int64_t left = (<const Item*>a).offset
    cdef int64_t right = (<const Item*>b).offset
    return (left > right) - (left < right)


cdef void _sum_upto(
    Lane* lane, Py_ssize_t i, int64_t last_seq, int64_t* count, int64_t* size_bytes
) noexcept nogil:
    """Add up the items with seq <= last_seq: in a min-heap they hang together at the root."""
    if i >= lane.count or lane.heap[i].seq > last_seq:
        return
    count[0] += 1
    size_bytes[0] += lane.heap[i].size_bytes
    _sum_upto(lane, 2 * i + 1, last_seq, count, size_bytes)
    _sum_upto(lane, 2 * i + 2, last_seq, count, size_bytes)


cdef inline bint _before(Node* a, Node* b) noexcept nogil:
    return a.key < b.key or (a.key == b.key and a.offset < b.offset)


cdef inline void _place(Queue* queue, Lane* lanes, Py_ssize_t i, Node node) noexcept nogil:
    queue.nodes[i] = node
    lanes[node.lane].at[queue.which] = i


cdef void _sift(Queue* queue, Lane* lanes, Py_ssize_t i, Node node) noexcept nogil:
    """Put `node` where it belongs, starting from the vacant place i."""
    cdef Py_ssize_t other
    while i > 0:
        other = (i - 1) >> 1
        if not _before(&node, &queue.nodes[other]):
            break
        _place(queue, lanes, i, queue.nodes[other])
        i = other
    while True:
        other = 2 * i + 1
        if other >= queue.count:
            break
        if other + 1 < queue.count and _before(&queue.nodes[other + 1], &queue.nodes[other]):
            other += 1
        if not _before(&queue.nodes[other], &node):
            break
        _place(queue, lanes, i, queue.nodes[other])
        i = other
    _place(queue, lanes, i, node)


cdef void _enqueue(Queue* queue, Lane* lanes, Py_ssize_t lane, int64_t key) noexcept nogil:
    """Insert the lane, or move it to its new key. There is room for every lane."""
    cdef Node node
    cdef Py_ssize_t i = lanes[lane].at[queue.which]
    if i < 0:
        i = queue.count
        queue.count += 1
    node.key = key
    node.offset = lanes[lane].heap[0].offset
    node.lane = lane
    _sift(queue, lanes, i, node)


cdef void _dequeue(Queue* queue, Lane* lanes, Py_ssize_t lane) noexcept nogil:
    """Take the lane out, if it is in."""
    cdef Py_ssize_t i = lanes[lane].at[queue.which]
    if i < 0:
        return
    lanes[lane].at[queue.which] = -1
    queue.count -= 1
    if i < queue.count:
        _sift(queue, lanes, i, queue.nodes[queue.count])


# --- numbers from Python ---------------------------------------------------------------------------


cdef inline int _read_int(object value, int64_t low, int64_t high, int64_t* out, str what) except -1:
    """`value` as C integer; TypeError unless an int (bool is none), ValueError outside low..high."""
    cdef int overflow = 0
    if not PyLong_CheckExact(value):
        raise TypeError(f"{what} {value!r} is not an int")
    out[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or out[0] < low or out[0] > high:
        raise ValueError(f"{what} {value} is outside {low}..{high}")
    return 0


cdef int64_t _read_limit(str name, object value) except -1:
    cdef int64_t limit = 0
    _read_int(value, 0, MAX_NUMBER, &limit, name)
    return limit


cdef inline int64_t _read_time(object now_ms) except -1:
    cdef int64_t now = 0
    _read_int(now_ms, 0, MAX_NUMBER, &now, "now_ms")
    return now


cdef int _check_length(str what, list values, Py_ssize_t expected) except -1:
    if len(values) != expected:
        raise ValueError(f"{what} has {len(values)} elements, users has {expected}: they go by index")
    return 0


# --- objects ---------------------------------------------------------------------------------------


cdef class Arrivals:
    def __cinit__(self):
        self.ready = []
        self.below = []
        self.occupied = []
        self.jumped = []
        self.unknown = []
        self.evicted = []


cdef class _User:
    """64 bytes, and nothing the garbage collector would have to walk."""


cdef class ReorderBuffer:
    def __cinit__(self):
        self._free_lane = -1
        self._base_ms = -MAX_NUMBER
        self._by_name = {}
        self._payloads = []
        self._idle = _User.__new__(_User)
        self._idle.older = self._idle.newer = <PyObject*>self._idle
        self._queues[AGE].which = AGE
        self._queues[DUE].which = DUE

    def __init__(
        self,
        *,
        position,
        gap_timeout_ms=5000,
        max_seq_jump=1_000_000,
        max_parked_per_user=10_000,
        max_parked=100_000,
        max_parked_bytes=268_435_456,
        max_users=100_000,
    ):
        if self._by_name or self._ring_count:
            raise ValueError("this ReorderBuffer is in use: make a new one instead of calling __init__ again")
        _read_int(position, 0, INT64_MAX, &self.position, "position")
        self._gap_timeout_ms = _read_limit("gap_timeout_ms", gap_timeout_ms)
        self._max_seq_jump = _read_limit("max_seq_jump", max_seq_jump)
        self._max_parked_per_user = _read_limit("max_parked_per_user", max_parked_per_user)
        self._max_parked = _read_limit("max_parked", max_parked)
        self._max_parked_bytes = _read_limit("max_parked_bytes", max_parked_bytes)
        self._max_users = _read_limit("max_users", max_users)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self._lane_capacity):
            free(self._lanes[i].heap)
        free(self._lanes)
        free(self._queues[AGE].nodes)
        free(self._queues[DUE].nodes)
        free(self._ring)
        free(self._done)
        free(self._scratch)

    @property
    def users(self):
        return len(self._by_name)

    # --- arrivals ----------------------------------------------------------------------------------

    def push(
        self,
        list users not None,
        list seqs not None,
        list offsets not None,
        list sizes not None,
        list items not None,
        now_ms not None,
    ):
        cdef Py_ssize_t n = len(users)
        cdef Py_ssize_t i
        cdef int64_t now = _read_time(now_ms)
        cdef int64_t* numbers
        cdef int64_t lowest = self.position
        cdef Arrivals out
        cdef object name
        _check_length("seqs", seqs, n)
        _check_length("offsets", offsets, n)
        _check_length("sizes", sizes, n)
        _check_length("items", items, n)
        self._reserve_scratch(3 * n)
        self._reserve_ring(n)
        numbers = self._scratch
        for i in range(n):
            name = <object>PyList_GET_ITEM(users, i)
            if not PyUnicode_CheckExact(name):
                raise TypeError(f"user {name!r} is not a str")
            _read_int(<object>PyList_GET_ITEM(seqs, i), 0, MAX_SEQ, &numbers[0], "seq")
            if numbers[0] and not name:
                raise ValueError(f"seq {numbers[0]} has no user: only seq 0 (unsequenced) goes without")
            self._read_offset(<object>PyList_GET_ITEM(offsets, i), lowest, &numbers[1])
            _read_int(<object>PyList_GET_ITEM(sizes, i), 0, MAX_NUMBER, &numbers[2], "size")
            lowest = numbers[1] + 1
            numbers += 3
        out = Arrivals.__new__(Arrivals)
        numbers = self._scratch
        for i in range(n):
            self._append_offset(numbers[1])
            if numbers[0] == 0:
                PyList_Append(out.ready, <object>PyList_GET_ITEM(items, i))
            else:
                self._arrive(
                    out,
                    <object>PyList_GET_ITEM(users, i),
                    <object>PyList_GET_ITEM(seqs, i),
                    <object>PyList_GET_ITEM(items, i),
                    numbers,
                    now,
                )
            numbers += 3
        self._evict(out)
        return out

    cdef int _arrive(
        self, Arrivals out, object name, object key, object item, int64_t* numbers, int64_t now
    ) except -1:
        """Judge one arrival; `numbers` are its seq, offset and size, `key` the seq as Python int."""
        cdef int64_t seq = numbers[0]
        cdef PyObject* found = PyDict_GetItemWithError(self._by_name, name)
        cdef PyObject* there
        cdef _User user
        cdef Item record
        if found is NULL:
            user = _User.__new__(_User)
            user.name = name
            user.lane = -1
            PyDict_SetItem(self._by_name, name, user)
            out.unknown.append(name)
        else:
            user = <_User>found
            if user.loaded:
                if seq == user.expected and not user.closed:
                    self._leave_idle(user)
                    PyList_Append(out.ready, item)
                    user.expected += 1
                    user.inflight += 1
                    user.adopt = False
                    if user.lane >= 0 and self._lanes[user.lane].heap[0].seq == user.expected:
                        self._unwatch(user.lane)
                        self._release(user, out)
                    return 0
                if seq < user.expected:
                    PyList_Append(out.below, item)
                    self._touch(user)
                    return 0
                if self._max_seq_jump and seq - self._max_seq_jump > user.expected and not user.adopt:
                    there = NULL
                    if user.lane >= 0:
                        there = PyDict_GetItemWithError(self._payloads[user.lane], key)
                    if there is NULL:
                        PyList_Append(out.jumped, item)
                        self._touch(user)
                    else:
                        out.occupied.append((item, <object>there))
                    return 0
        record.seq = seq
        record.offset = numbers[1]
        record.size_bytes = numbers[2]
        record.arrival_ms = now
        self._park(user, out, key, item, record)
        return 0

    cdef int _park(self, _User user, Arrivals out, object key, object item, Item record) except -1:
        cdef Py_ssize_t at
        cdef Py_ssize_t before
        cdef PyObject* there
        cdef Lane* lane
        cdef dict payloads
        if user.lane < 0:
            self._take_lane(user)
        at = user.lane
        lane = &self._lanes[at]
        if lane.count == lane.capacity:
            self._grow_heap(lane)
        payloads = self._payloads[at]
        before = len(payloads)
        there = PyDict_SetDefault(payloads, key, item)
        if len(payloads) == before:
            out.occupied.append((item, <object>there))
            return 0
        _push_item(lane, record)
        lane.bytes += record.size_bytes
        self.parked += 1
        self.parked_bytes += record.size_bytes
        if not user.loaded or user.closed:
            return 0
        self._leave_idle(user)
        if lane.count == 1:
            self._watch(at)
            return 0
        self._behind_gap += 1
        self._behind_gap_bytes += record.size_bytes
        if lane.count == self._max_parked_per_user + 1:
            self._overfull_users += 1
        if lane.heap[0].offset == record.offset:  # a lower seq: its own arrival counts from now on
            _enqueue(&self._queues[AGE], self._lanes, at, record.offset)
            _enqueue(&self._queues[DUE], self._lanes, at, self._deadline(lane))
        return 0

    def load(self, list users not None, list expected not None, list adopt not None, now_ms not None):
        cdef Py_ssize_t n = len(users)
        cdef Py_ssize_t i
        cdef Arrivals out = Arrivals.__new__(Arrivals)
        cdef list found = []
        cdef _User user
        _read_time(now_ms)
        _check_length("expected", expected, n)
        _check_length("adopt", adopt, n)
        self._reserve_scratch(n)
        for i in range(n):
            _read_int(expected[i], 1, MAX_SEQ + 1, &self._scratch[i], "expected seq")
            user = self._by_name.get(users[i])
            if user is None or user.loaded:
                raise ValueError(f"user {users[i]!r} does not wait for load(): each user of `unknown` once")
            found.append(user)
        if len(set(users)) != n:
            raise ValueError("a user is named twice in one load()")
        for i in range(n):
            user = found[i]
            user.expected = self._scratch[i]
            user.adopt = bool(adopt[i])
            user.loaded = True
            self._judge_parked(user, out)
            self._touch(user)
        self._evict(out)
        return out

    cdef int _judge_parked(self, _User user, Arrivals out) except -1:
        """Let what waited for load() arrive anew, one by one; each keeps its arrival time."""
        cdef Lane* lane = &self._lanes[user.lane]
        cdef dict payloads = self._payloads[user.lane]
        cdef Py_ssize_t n = lane.count
        cdef Py_ssize_t i
        cdef Item item
        qsort(lane.heap, n, sizeof(Item), _by_offset)
        lane.count = 0
        for i in range(n):  # _push_item writes no further than i
            item = lane.heap[i]
            if item.seq < user.expected:
                self._unpark(lane, item)
                out.below.append(payloads.pop(item.seq))
            elif item.seq == user.expected:
                _push_item(lane, item)
                user.adopt = False
                self._release_run(user, payloads, out)
            elif self._max_seq_jump and item.seq - self._max_seq_jump > user.expected and not user.adopt:
                self._unpark(lane, item)
                out.jumped.append(payloads.pop(item.seq))
            else:
                _push_item(lane, item)
        self._settle_lane(user)
        return 0

    # --- lanes -------------------------------------------------------------------------------------

    cdef int _take_lane(self, _User user) except -1:
        cdef Py_ssize_t at
        cdef Lane* lane
        if self._free_lane < 0:
            self._add_lanes()
        at = self._free_lane
        self._payloads[at] = {}
        lane = &self._lanes[at]
        self._free_lane = lane.next_free
        lane.user = <PyObject*>user
        lane.count = 0
        lane.bytes = 0
        lane.base_ms = -MAX_NUMBER
        lane.at[AGE] = lane.at[DUE] = -1
        user.lane = at
        return 0

    cdef void _free_user_lane(self, _User user):
        """Give back the lane of a user that has nothing parked any more, with its memory."""
        cdef Lane* lane = &self._lanes[user.lane]
        self._payloads[user.lane] = None
        if lane.capacity > 8:
            free(lane.heap)
            lane.heap = NULL
            lane.capacity = 0
        lane.user = NULL
        lane.next_free = self._free_lane
        self._free_lane = user.lane
        user.lane = -1

    cdef int _add_lanes(self) except -1:
        """Double the lanes; the queues always have room for all of them."""
        cdef Py_ssize_t old = self._lane_capacity
        cdef Py_ssize_t new = 2 * old if old else 16
        cdef Py_ssize_t i
        self._queues[AGE].nodes = <Node*>_grow(self._queues[AGE].nodes, new * sizeof(Node))
        self._queues[DUE].nodes = <Node*>_grow(self._queues[DUE].nodes, new * sizeof(Node))
        self._lanes = <Lane*>_grow(self._lanes, new * sizeof(Lane))
        self._payloads.extend([None] * (new - len(self._payloads)))
        memset(&self._lanes[old], 0, (new - old) * sizeof(Lane))
        for i in range(new - 1, old - 1, -1):
            self._lanes[i].next_free = self._free_lane
            self._free_lane = i
        self._lane_capacity = new
        return 0

    cdef int _grow_heap(self, Lane* lane) except -1:
        cdef Py_ssize_t capacity = 2 * lane.capacity if lane.capacity else 4
        lane.heap = <Item*>_grow(lane.heap, capacity * sizeof(Item))
        lane.capacity = capacity
        return 0

    cdef void _unpark(self, Lane* lane, Item item) noexcept:
        lane.bytes -= item.size_bytes
        self.parked -= 1
        self.parked_bytes -= item.size_bytes

    cdef int _release_run(self, _User user, dict payloads, Arrivals out) except -1:
        """Move what follows without a gap to ready."""
        cdef Lane* lane = &self._lanes[user.lane]
        cdef object key
        while lane.count and lane.heap[0].seq == user.expected:
            key = user.expected
            PyList_Append(out.ready, <object>PyDict_GetItemWithError(payloads, key))
            PyDict_DelItem(payloads, key)
            self._unpark(lane, _pop_item(lane))
            user.expected += 1
            user.inflight += 1
        return 0

    cdef int _release(self, _User user, Arrivals out) except -1:
        self._release_run(user, self._payloads[user.lane], out)
        self._settle_lane(user)
        return 0

    cdef void _settle_lane(self, _User user):
        """After items have left: what remains waits behind a gap, an empty lane is given back."""
        if self._lanes[user.lane].count:
            self._watch(user.lane)
        else:
            self._free_user_lane(user)

    # --- gaps and their deadlines ------------------------------------------------------------------

    cdef int64_t _deadline(self, Lane* lane) noexcept:
        return max(lane.heap[0].arrival_ms, lane.base_ms, self._base_ms) + self._gap_timeout_ms

    cdef void _watch(self, Py_ssize_t at) noexcept:
        """The lane waits behind a gap from now on: it has a deadline, and counts for the caps."""
        cdef Lane* lane = &self._lanes[at]
        self._behind_gap += lane.count
        self._behind_gap_bytes += lane.bytes
        if lane.count > self._max_parked_per_user:
            self._overfull_users += 1
        _enqueue(&self._queues[AGE], self._lanes, at, lane.heap[0].offset)
        _enqueue(&self._queues[DUE], self._lanes, at, self._deadline(lane))

    cdef void _unwatch(self, Py_ssize_t at) noexcept:
        cdef Lane* lane = &self._lanes[at]
        self._behind_gap -= lane.count
        self._behind_gap_bytes -= lane.bytes
        if lane.count > self._max_parked_per_user:
            self._overfull_users -= 1
        _dequeue(&self._queues[AGE], self._lanes, at)
        _dequeue(&self._queues[DUE], self._lanes, at)

    cdef _User _user_of(self, Py_ssize_t lane):
        return <_User>self._lanes[lane].user

    cpdef due(self, now_ms):
        cdef int64_t now = _read_time(now_ms)
        cdef Queue* queue = &self._queues[DUE]
        cdef list names = []
        cdef Py_ssize_t at
        while queue.count and queue.nodes[0].key <= now:
            at = queue.nodes[0].lane
            names.append(self._user_of(at).name)
            _dequeue(queue, self._lanes, at)
        return names

    def rearm(self, list users not None, now_ms not None):
        cdef int64_t now = _read_time(now_ms)
        cdef Lane* lane
        cdef _User user
        for name in users:
            user = self._by_name.get(name)
            if user is None or user.lane < 0 or self._lanes[user.lane].at[AGE] < 0:
                continue
            lane = &self._lanes[user.lane]
            lane.base_ms = max(lane.base_ms, now)
            _enqueue(&self._queues[DUE], self._lanes, user.lane, self._deadline(lane))

    cpdef next_deadline_ms(self):
        return self._queues[DUE].nodes[0].key if self._queues[DUE].count else -1

    def restart_timers(self, now_ms not None):
        cdef int64_t now = _read_time(now_ms)
        cdef Queue* age = &self._queues[AGE]
        cdef Queue* queue = &self._queues[DUE]
        cdef Py_ssize_t i
        cdef Node node
        self._base_ms = max(self._base_ms, now)
        for i in range(age.count):  # by age the deadlines nearly ascend already: few of them move
            node = age.nodes[i]
            node.key = self._deadline(&self._lanes[node.lane])
            queue.count = i + 1
            _sift(queue, self._lanes, i, node)

    def close(self, list users not None, *, bint only_due=False):
        cdef list gaps = []
        cdef Lane* lane
        cdef _User user
        cdef int64_t first
        for name in users:
            user = self._by_name.get(name)
            if user is None or user.lane < 0:
                continue
            lane = &self._lanes[user.lane]
            if lane.at[AGE] < 0 or (only_due and lane.at[DUE] >= 0):
                continue
            first = user.expected
            gaps.append((user.name, first, lane.heap[0].seq - 1, bool(user.adopt)))
            self._unwatch(user.lane)
            user.expected = lane.heap[0].seq
            user.adopt = False
            user.closed = True
        return gaps

    def open(self, list users not None, now_ms not None):
        cdef Arrivals out = Arrivals.__new__(Arrivals)
        cdef list found = []
        cdef _User user
        _read_time(now_ms)
        for name in users:
            user = self._by_name.get(name)
            if user is None or not user.closed:
                raise ValueError(f"user {name!r} is not closed: open() follows close(), once")
            found.append(user)
        if len(set(users)) != len(users):
            raise ValueError("a user is named twice in one open()")
        for user in found:
            user.closed = False
            self._release(user, out)
        return out

    # --- caps --------------------------------------------------------------------------------------

    cpdef overfull(self):
        cdef Queue* age = &self._queues[AGE]
        cdef int64_t count = self._behind_gap
        cdef int64_t size_bytes = self._behind_gap_bytes
        cdef list names = []
        cdef list frontier = []
        cdef set chosen = set()
        cdef Py_ssize_t i
        if not self._overfull_users and count <= self._max_parked and size_bytes <= self._max_parked_bytes:
            return names
        if self._overfull_users:
            for i in range(age.count):
                if self._lanes[age.nodes[i].lane].count > self._max_parked_per_user:
                    frontier.append((age.nodes[i].key, i))
            for _, i in sorted(frontier):
                chosen.add(i)
                names.append(self._choose(age.nodes[i].lane, &count, &size_bytes))
        frontier = [(age.nodes[0].key, 0)]  # walk the queue from its oldest on without changing it
        while frontier and (count > self._max_parked or size_bytes > self._max_parked_bytes):
            i = heappop(frontier)[1]
            if i not in chosen:
                names.append(self._choose(age.nodes[i].lane, &count, &size_bytes))
            for i in range(2 * i + 1, min(2 * i + 3, age.count)):
                heappush(frontier, (age.nodes[i].key, i))
        return names

    cdef str _choose(self, Py_ssize_t at, int64_t* count, int64_t* size_bytes):
        """Subtract what closing this lane's gap will release: its lowest items up to the next gap."""
        cdef Lane* lane = &self._lanes[at]
        cdef dict payloads = self._payloads[at]
        cdef int64_t last = lane.heap[0].seq
        cdef int64_t run = 0
        cdef int64_t run_bytes = 0
        while last + 1 in payloads:
            last += 1
        _sum_upto(lane, 0, last, &run, &run_bytes)
        count[0] -= run
        size_bytes[0] -= run_bytes
        return self._user_of(at).name

    def oldest_gap(self):
        cdef Py_ssize_t at
        if self._queues[AGE].count == 0:
            return None
        at = self._queues[AGE].nodes[0].lane
        return self._user_of(at).name, self._lanes[at].heap[0].arrival_ms

    def floor_gap(self):
        cdef Queue* age = &self._queues[AGE]
        cdef Lane* lane
        cdef Py_ssize_t i, j
        cdef int64_t lowest
        if self._ring_count == 0:
            return None
        lowest = self._ring[self._ring_start]
        for i in range(age.count):
            lane = &self._lanes[age.nodes[i].lane]
            for j in range(lane.count):
                if lane.heap[j].offset == lowest:
                    return self._user_of(age.nodes[i].lane).name, lane.heap[0].arrival_ms
        return None

    # --- users -------------------------------------------------------------------------------------

    def expected(self, str user not None):
        cdef _User known = self._by_name.get(user)
        return known.expected if known is not None and known.loaded else 0

    def in_flight(self, str user not None):
        cdef _User known = self._by_name.get(user)
        return known.inflight if known is not None else 0

    def finish(self, list users not None):
        cdef Py_ssize_t n = len(users)
        cdef Py_ssize_t i
        cdef PyObject* found
        cdef _User user
        cdef object name
        for i in range(n):
            name = <object>PyList_GET_ITEM(users, i)
            if not PyUnicode_CheckExact(name):
                self._unfinish(users, i)
                raise TypeError(f"user {name!r} is not a str")
            if not name:
                continue
            found = PyDict_GetItemWithError(self._by_name, name)
            if found is NULL or (<_User>found).inflight == 0:
                self._unfinish(users, i)
                raise ValueError(f"user {name!r} has nothing ready to finish: finish each ready item once")
            user = <_User>found
            user.inflight -= 1
            if user.inflight == 0 and user.lane < 0:
                self._join_idle(user)

    cdef int _unfinish(self, list users, Py_ssize_t count) except -1:
        """Take back the first `count` of a finish() that has turned out wrong."""
        cdef _User user
        for name in users[:count]:
            if name:
                user = self._by_name[name]
                self._leave_idle(user)
                user.inflight += 1
        return 0

    cdef void _join_idle(self, _User user) noexcept:
        cdef PyObject* end = <PyObject*>self._idle
        user.newer = end
        user.older = self._idle.older
        (<_User>self._idle.older).newer = <PyObject*>user
        self._idle.older = <PyObject*>user

    cdef void _leave_idle(self, _User user) noexcept:
        if user.newer is NULL:
            return
        (<_User>user.newer).older = user.older
        (<_User>user.older).newer = user.newer
        user.newer = user.older = NULL

    cdef void _touch(self, _User user) noexcept:
        """The user was used: if idle, it is the last to be evicted."""
        self._leave_idle(user)
        if user.inflight == 0 and user.lane < 0:
            self._join_idle(user)

    cdef int _evict(self, Arrivals out) except -1:
        cdef _User user
        while len(self._by_name) > self._max_users and self._idle.newer is not <PyObject*>self._idle:
            user = <_User>self._idle.newer
            self._leave_idle(user)
            out.evicted.append(user.name)
            PyDict_DelItem(self._by_name, user.name)
        return 0

    # --- offsets -----------------------------------------------------------------------------------

    def track(self, list offsets not None):
        cdef Py_ssize_t n = len(offsets)
        cdef Py_ssize_t i
        cdef int64_t lowest = self.position
        self._reserve_scratch(n)
        self._reserve_ring(n)
        for i in range(n):
            self._read_offset(offsets[i], lowest, &self._scratch[i])
            lowest = self._scratch[i] + 1
        for i in range(n):
            self._append_offset(self._scratch[i])

    cpdef advance(self, position):
        cdef int64_t to = 0
        _read_int(position, 0, INT64_MAX, &to, "position")
        self.position = max(self.position, to)

    def settle(self, list offsets not None):
        cdef Py_ssize_t marked = 0
        self._reserve_scratch(len(offsets))
        try:
            self._mark_done(offsets, &marked)
        except (TypeError, ValueError):
            self._unmark_done(marked)
            raise
        self._unsettled -= marked
        while self._ring_count and self._done[self._ring_start]:
            self._ring_start = (self._ring_start + 1) & (self._ring_capacity - 1)
            self._ring_count -= 1

    cdef int _mark_done(self, list offsets, Py_ssize_t* marked) except -1:
        """Mark each as done, and note its place; `marked` tells how far this came."""
        cdef Py_ssize_t mask = self._ring_capacity - 1
        cdef Py_ssize_t at = -1
        cdef Py_ssize_t i
        cdef int64_t offset = 0
        for i in range(len(offsets)):
            _read_int(<object>PyList_GET_ITEM(offsets, i), 0, INT64_MAX, &offset, "offset")
            at = self._find_offset(offset, at + 1)
            if at < 0 or self._done[(self._ring_start + at) & mask]:
                raise ValueError(f"offset {offset} is unknown or settled already: settle each record once")
            self._done[(self._ring_start + at) & mask] = True
            self._scratch[i] = at
            marked[0] = i + 1
        return 0

    cdef void _unmark_done(self, Py_ssize_t count) noexcept:
        """Take back the first `count` marks of a settle() that has turned out wrong."""
        cdef Py_ssize_t i
        for i in range(count):
            self._done[(self._ring_start + self._scratch[i]) & (self._ring_capacity - 1)] = False

    cdef Py_ssize_t _find_offset(self, int64_t offset, Py_ssize_t guess) noexcept:
        """Place of the offset, counted from the start of the ring, or -1. Offsets are not contiguous."""
        cdef Py_ssize_t mask = self._ring_capacity - 1
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self._ring_count
        cdef Py_ssize_t middle
        if guess < high and self._ring[(self._ring_start + guess) & mask] == offset:
            return guess
        while low < high:
            middle = (low + high) >> 1
            if self._ring[(self._ring_start + middle) & mask] < offset:
                low = middle + 1
            else:
                high = middle
        if low < self._ring_count and self._ring[(self._ring_start + low) & mask] == offset:
            return low
        return -1

    def is_settled(self, offset not None):
        cdef int64_t wanted = 0
        cdef Py_ssize_t at
        _read_int(offset, 0, INT64_MAX, &wanted, "offset")
        at = self._find_offset(wanted, 0)
        return at < 0 or bool(self._done[(self._ring_start + at) & (self._ring_capacity - 1)])

    cpdef floor(self):
        return self._ring[self._ring_start] if self._ring_count else self.position

    cpdef unfinalized(self):
        return self._unsettled

    cdef int _read_offset(self, object value, int64_t lowest, int64_t* out) except -1:
        _read_int(value, 0, INT64_MAX - 1, out, "offset")
        if out[0] < lowest:
            raise ValueError(f"offset {out[0]} is below {lowest}: offsets must ascend from the position on")
        return 0

    cdef void _append_offset(self, int64_t offset) noexcept:
        """There is room, and the offset is above all others."""
        cdef Py_ssize_t at = (self._ring_start + self._ring_count) & (self._ring_capacity - 1)
        self._ring[at] = offset
        self._done[at] = False
        self._ring_count += 1
        self._unsettled += 1
        self.position = offset + 1

    cdef int _reserve_ring(self, Py_ssize_t more) except -1:
        """Make room for `more` offsets; what is there is moved to the front."""
        cdef Py_ssize_t old = self._ring_capacity
        cdef Py_ssize_t new = old if old else 1024
        cdef int64_t* ring = NULL
        cdef uint8_t* done = NULL
        cdef Py_ssize_t i
        while new < self._ring_count + more:
            new *= 2
        if new == old:
            return 0
        ring = <int64_t*>_grow(NULL, new * sizeof(int64_t))
        try:
            done = <uint8_t*>_grow(NULL, new)
        except MemoryError:
            free(ring)
            raise
        for i in range(self._ring_count):
            ring[i] = self._ring[(self._ring_start + i) & (old - 1)]
            done[i] = self._done[(self._ring_start + i) & (old - 1)]
        free(self._ring)
        free(self._done)
        self._ring = ring
        self._done = done
        self._ring_capacity = new
        self._ring_start = 0
        return 0

    cdef int _reserve_scratch(self, Py_ssize_t count) except -1:
        if count > self._scratch_capacity:
            self._scratch = <int64_t*>_grow(self._scratch, count * sizeof(int64_t))
            self._scratch_capacity = count
        return 0


cdef void* _grow(void* memory, size_t size_bytes) except NULL:
    cdef void* grown = realloc(memory, size_bytes)
    if grown is NULL:
        raise MemoryError(f"no memory for {size_bytes} bytes of the reorder buffer")
    return grown


# --- partitioner -----------------------------------------------------------------------------------


def partition_of(str user not None, partitions not None):
    cdef int64_t count = 0
    _read_int(partitions, 1, 0x7FFFFFFF, &count, "partitions")
    return partition_for(user, count)


@cython.cdivision(True)
cdef int64_t partition_for(str user, int64_t partitions) except -1:
    cdef Py_ssize_t length = 0
    cdef const uint8_t* data = <const uint8_t*>PyUnicode_AsUTF8AndSize(user, &length)
    cdef uint32_t h = <uint32_t>0x9747B28C ^ <uint32_t>length
    cdef uint32_t k
    while length >= 4:
        k = data[0] | <uint32_t>data[1] << 8 | <uint32_t>data[2] << 16 | <uint32_t>data[3] << 24
        k *= <uint32_t>0x5BD1E995
        k ^= k >> 24
        k *= <uint32_t>0x5BD1E995
        h *= <uint32_t>0x5BD1E995
        h ^= k
        data += 4
        length -= 4
    if length:
        if length == 3:
            h ^= <uint32_t>data[2] << 16
        if length >= 2:
            h ^= <uint32_t>data[1] << 8
        h ^= data[0]
        h *= <uint32_t>0x5BD1E995
    h ^= h >> 13
    h *= <uint32_t>0x5BD1E995
    h ^= h >> 15
    return (h & 0x7FFFFFFF) % partitions


cdef bint plain(object text) noexcept:
    cdef Py_ssize_t length
    cdef Py_ssize_t i
    cdef const uint8_t* characters
    cdef bint blank = True
    if not PyUnicode_CheckExact(text) or not PyUnicode_IS_COMPACT_ASCII(text):
        return False
    length = PyUnicode_GET_LENGTH(text)
    if length > 256:
        return False
    characters = <const uint8_t*>PyUnicode_DATA(text)
    for i in range(length):
        if characters[i] < 0x20 or characters[i] > 0x7E:
            return False
        if characters[i] != 0x20:
            blank = False
    return not blank


def is_plain(a, b, c):
    return plain(a) and plain(b) and plain(c)
