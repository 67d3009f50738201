"""RESP commands for acquire_events and finalize_events. Contracts are in _encode.pyi.

Keys come before arguments, and their number before both: `_Command` leaves room in front, and writes the
head last.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from eventproc._entry cimport Entry, UserEffects, is_ordinary

cdef enum:
    HEAD = 128  # room for "*<n>\r\n$7\r\nEVALSHA\r\n$40\r\n<sha1>\r\n$<d>\r\n<keys>\r\n"
    DIGITS = 20  # of a 64-bit number, with its sign


cdef int _decimal(int64_t value, char* end) noexcept nogil:
    """Write the number so that it ends before `end`; answers its length."""
    cdef uint64_t rest = -<uint64_t>value if value < 0 else <uint64_t>value
    cdef int length = 0
    while True:
        end -= 1
        length += 1
        end[0] = c'0' + rest % 10
        rest //= 10
        if rest == 0:
            break
    if value < 0:
        end -= 1
        length += 1
        end[0] = c'-'
    return length


@cython.final
cdef class _Command:
    """The arguments of one EVALSHA, written one after the other into memory that is kept for the next."""

    cdef char* _buffer
    cdef Py_ssize_t _size
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t count  # arguments so far

    def __dealloc__(self):
        free(self._buffer)

    cdef void begin(self) noexcept:
        self._size = HEAD
        self.count = 0

    cdef char* _room(self, Py_ssize_t size) except NULL:
        """Memory for so many more bytes."""
        cdef Py_ssize_t capacity
        cdef char* grown
        if self._size + size > self._capacity:
            capacity = 2 * (self._size + size)
            grown = <char*>realloc(self._buffer, capacity)
            if grown is NULL:
                raise MemoryError(f"no memory for a Redis call of {capacity} bytes")
            self._buffer = grown
            self._capacity = capacity
        return self._buffer + self._size

    cdef int put(
        self, const char* first, Py_ssize_t first_size, const char* second, Py_ssize_t size
    ) except -1:
        """One argument, made of two parts."""
        cdef char digits[DIGITS]
        cdef int n = _decimal(first_size + size, digits + DIGITS)
        cdef char* at = self._room(first_size + size + DIGITS + 5)
        cdef char* start = at
        at[0] = c'$'
        memcpy(at + 1, digits + DIGITS - n, n)
        at += 1 + n
        at[0] = c'\r'
        at[1] = c'\n'
        memcpy(at + 2, first, first_size)
        at += 2 + first_size
        memcpy(at, second, size)
        at += size
        at[0] = c'\r'
        at[1] = c'\n'
        self._size += at + 2 - start
        self.count += 1
        return 0

    cdef int put_bytes(self, bytes value) except -1:
        return self.put("", 0, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))

    cdef int put_text(self, str value) except -1:
        cdef Py_ssize_t size = 0
        cdef const char* data = PyUnicode_AsUTF8AndSize(value, &size)
        return self.put("", 0, data, size)

    cdef int put_key(self, bytes prefix, str name) except -1:
        cdef Py_ssize_t size = 0
        cdef const char* data = PyUnicode_AsUTF8AndSize(name, &size)
        return self.put(PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix), data, size)

    cdef int put_int(self, int64_t value) except -1:
        cdef char digits[DIGITS]
        cdef int n = _decimal(value, digits + DIGITS)
        return self.put("", 0, digits + DIGITS - n, n)

    cdef int put_seq(self, int64_t seq) except -1:
        """Nothing for the seq of an unsequenced event."""
        return self.put_int(seq) if seq else self.put_nothing()

    cdef int put_nothing(self) except -1:
        return self.put("", 0, "", 0)

    cdef bytes end(self, bytes sha1, Py_ssize_t keys):
        """The command; `sha1` names the script, `keys` tells how many of the arguments are keys."""
        cdef bytes number = b"%d" % keys
        cdef bytes head = b"*%d\r\n$7\r\nEVALSHA\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            self.count + 3, len(sha1), sha1, len(number), number
        )
        cdef Py_ssize_t size = PyBytes_GET_SIZE(head)
        assert size <= HEAD
        memcpy(self._buffer + HEAD - size, PyBytes_AS_STRING(head), size)
        return PyBytes_FromStringAndSize(self._buffer + HEAD - size, self._size - HEAD + size)


cdef inline Entry _at(list entries, Py_ssize_t i):
    return <Entry?>PyList_GET_ITEM(entries, i)


cdef bint _has_more(UserEffects group) except -1:
    """Whether more is to be told of the group than its entries, or one of them may touch the next key."""
    cdef Py_ssize_t i
    if group.has_next or group.gaps:
        return True
    for i in range(PyList_GET_SIZE(group.entries)):
        if not is_ordinary(_at(group.entries, i)):
            return True
    return False


@cython.final
cdef class BatchEncoder:
    cdef _Command _command
    cdef bytes _event, _dedup, _inflight, _order, _next, _gaps, _dlq, _dlq_list, _partition
    cdef bytes _event_template, _dedup_template, _lock_template
    cdef bytes _acquire_sha1, _finalize_sha1, _ours
    cdef int64_t _lock_ttl_ms
    cdef bint _lock_looks
    cdef Py_ssize_t _raw_max_bytes
    cdef list _limits

    def __init__(
        self, keyspace, acquire_sha1, finalize_sha1, ours, lock_ttl_ms, lock_looks, raw_max_bytes, limits
    ):
        self._command = _Command.__new__(_Command)
        self._event = keyspace.event.encode()
        self._dedup = keyspace.dedup.encode()
        self._inflight = keyspace.inflight.encode()
        self._order = keyspace.order.encode()
        self._next = keyspace.next.encode()
        self._gaps = keyspace.gaps.encode()
        self._dlq = keyspace.dlq.encode()
        self._dlq_list = keyspace.dlq_list.encode()
        self._partition = keyspace.partition.encode()
        self._event_template = keyspace.event_template.encode()
        self._dedup_template = keyspace.dedup_template.encode()
        self._lock_template = keyspace.lock_template.encode()
        self._acquire_sha1 = acquire_sha1
        self._finalize_sha1 = finalize_sha1
        self._ours = ours.encode()
        self._lock_ttl_ms = lock_ttl_ms
        self._lock_looks = lock_looks
        self._raw_max_bytes = raw_max_bytes
        self._limits = [str(limit).encode() for limit in limits]

    def acquire(self, request not None, str lock not None):
        cdef _Command to = self._command
        cdef list entries = request.entries
        cdef list looks = []
        cdef Py_ssize_t i
        cdef Py_ssize_t keys
        cdef Py_ssize_t count = PyList_GET_SIZE(entries)
        cdef Entry entry
        to.begin()
        to.put_bytes(self._partition)
        to.put_bytes(self._lock_template)
        for i in range(count):
            entry = _at(entries, i)
            to.put_key(self._event, entry.id)
            to.put_key(self._dedup, entry.id)
            if entry.look:
                looks.append(i)
        for i in range(count):
            to.put_key(self._inflight, _at(entries, i).id)
        for i in looks:
            to.put_key(self._gaps, _at(entries, i).user)
        keys = to.count
        to.put_int(request.epoch)
        to.put_text(request.owner)
        to.put_text(lock)
        to.put_bytes(self._ours)
        to.put_int(self._lock_ttl_ms)
        to.put_int(count)
        to.put_int(PyList_GET_SIZE(looks))
        to.put_int(self._lock_looks)
        for i in looks:
            to.put_int(i + 1)
            to.put_seq(_at(entries, i).seq)
        return to.end(self._acquire_sha1, keys)

    def finalize(self, request not None):
        cdef _Command to = self._command
        cdef list groups = request.groups
        cdef list letters = request.letters
        cdef list writable = []
        cdef list entries
        cdef list details = []
        cdef UserEffects group
        cdef Entry entry
        cdef bytes limit
        cdef Py_ssize_t i
        cdef Py_ssize_t grouped
        cdef Py_ssize_t before
        cdef Py_ssize_t locks
        cdef Py_ssize_t keys
        cdef int64_t held_until = INT64_MAX
        for group in groups:
            writable += group.entries
        grouped = PyList_GET_SIZE(writable)
        writable += request.loose
        entries = writable + letters if letters else writable

        to.begin()
        to.put_bytes(self._partition)
        to.put_bytes(self._dlq_list)
        to.put_bytes(self._event_template)
        to.put_bytes(self._dedup_template)
        for i in range(PyList_GET_SIZE(writable)):
            to.put_key(self._event, _at(writable, i).id)
        for i in range(PyList_GET_SIZE(writable)):
            to.put_key(self._dedup, _at(writable, i).id)
        before = to.count
        for i in range(PyList_GET_SIZE(writable)):
            entry = _at(writable, i)
            if entry.granted_ms or entry.look:
                to.put_key(self._inflight, entry.id)
                if entry.lock_expiry_ms < held_until:
                    held_until = entry.lock_expiry_ms
        locks = to.count - before
        for group in groups:
            to.put_key(self._order, group.user)
            if _has_more(group):
                to.put_key(self._next, group.user)
                if group.gaps:
                    to.put_key(self._gaps, group.user)
        for i in range(PyList_GET_SIZE(entries)):
            entry = _at(entries, i)
            if not is_ordinary(entry):
                details.append(i)
                if entry.reason and not entry.passed:
                    to.put_key(self._dlq, entry.id)
        keys = to.count

        to.put_int(request.epoch)
        to.put_text(request.owner)
        to.put_int(request.rev)
        to.put_int(request.floor)
        to.put_int(request.unfinalized)
        to.put_bytes(self._ours)
        for limit in self._limits:
            to.put_bytes(limit)
        self._offsets(to, entries)
        to.put_int(grouped)
        to.put_int(PyList_GET_SIZE(writable) - grouped)
        to.put_int(PyList_GET_SIZE(letters))
        to.put_int(locks)
        to.put_int(held_until if locks else 0)
        to.put_int(PyList_GET_SIZE(groups))
        to.put_int(PyList_GET_SIZE(details))
        self._columns(to, writable, groups)
        for i in range(PyList_GET_SIZE(entries)):
            to.put_seq(_at(entries, i).seq)
        for i in range(grouped, PyList_GET_SIZE(entries)):
            to.put_text(_at(entries, i).user)
        for group in groups:
            if _has_more(group):
                self._more(to, group)
        for i in details:
            self._detail(to, i + 1, _at(entries, i))
        return to.end(self._finalize_sha1, keys)

    cdef int _offsets(self, _Command to, list entries) except -1:
        cdef Py_ssize_t count = PyList_GET_SIZE(entries)
        cdef bytes text = PyBytes_FromStringAndSize(NULL, (DIGITS + 1) * count)
        cdef char* begin = PyBytes_AS_STRING(text)
        cdef char* end = begin + (DIGITS + 1) * count
        cdef char* at = end
        cdef Py_ssize_t i
        for i in range(count - 1, -1, -1):
            at -= _decimal(_at(entries, i).offset, at)
            if i:
                at -= 1
                at[0] = c' '
        return to.put("", 0, at, end - at)

    cdef int _columns(self, _Command to, list writable, list groups) except -1:
        """The types, each once (most calls have few), and which of them each entry has; then the shapes."""
        cdef dict numbers = {}
        cdef Py_ssize_t count = PyList_GET_SIZE(writable)
        cdef bytes which = PyBytes_FromStringAndSize(NULL, 2 * count)
        cdef char* at = PyBytes_AS_STRING(which)
        cdef Py_ssize_t number = 0
        cdef Py_ssize_t i
        cdef str last = None
        cdef str type
        for i in range(count):
            type = _at(writable, i).type
            if type is not last:
                number = numbers.setdefault(type, len(numbers))
                last = type
            at[2 * i] = number >> 8
            at[2 * i + 1] = number & 255
        assert len(numbers) <= 65_536
        to.put_int(len(numbers))
        to.put_bytes(which)
        self._shapes(to, groups)
        to.put_bytes(self._order)
        to.put_bytes(self._next)
        for type in numbers:
            to.put_text(type)
        return 0

    cdef int _shapes(self, _Command to, list groups) except -1:
        cdef Py_ssize_t count = PyList_GET_SIZE(groups)
        cdef bytes shapes = PyBytes_FromStringAndSize(NULL, 2 * count)
        cdef char* at = PyBytes_AS_STRING(shapes)
        cdef Py_ssize_t shape
        cdef Py_ssize_t i
        cdef UserEffects group
        for i in range(count):
            group = <UserEffects?>PyList_GET_ITEM(groups, i)
            shape = 4 * PyList_GET_SIZE(group.entries) + 2 * group.dense + _has_more(group)
            assert shape < 65_536
            at[2 * i] = shape >> 8
            at[2 * i + 1] = shape & 255
        return to.put_bytes(shapes)

    cdef int _more(self, _Command to, UserEffects group) except -1:
        to.put_int(group.has_next)
        to.put_int(len(group.gaps))
        for gap in group.gaps:
            to.put_int(gap.first)
            to.put_int(gap.last)
            to.put_text(gap.reason)
        return 0

    cdef int _detail(self, _Command to, Py_ssize_t index, Entry entry) except -1:
        cdef bytes raw
        to.put_int(index)
        if entry.passed:
            to.put_nothing()
            to.put_int(entry.status == "processed")
            to.put_nothing()
            to.put_int(entry.offset)
            to.put_nothing()
            to.put_text(entry.id)
            return to.put_nothing()
        to.put_text(entry.status)
        to.put_int(entry.attempts)
        to.put_text(entry.error)
        to.put_int(entry.offset)
        to.put_text(entry.reason)
        to.put_text(entry.id)
        raw = (entry.record.value() or b"")[:self._raw_max_bytes] if entry.reason else b""
        return to.put_bytes(raw)
