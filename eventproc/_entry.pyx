"""Entries and what is done to many at once. Contracts are in _entry.pyi."""

cimport cython
from cpython.dict cimport PyDict_DelItem, PyDict_GetItemWithError, PyDict_SetDefault, PyDict_SetItem
from cpython.list cimport PyList_Append, PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t

from orjson import loads

UNREADABLE = "the headers cannot be read: the name of one is not UTF-8"


@cython.final
@cython.freelist(1024)
@cython.no_gc  # its fields never lead back to it, and a partition holds hundreds of thousands
cdef class Entry:
    def __cinit__(self):
        self.id = self.user = self.type = self.status = self.error = self.reason = ""
        self.lane = ""
        self.timestamp = 0

    def __init__(self, offset, record, id, user="", seq=0, type="", document=None, **fields):
        self.offset = offset
        self.record = record
        self.id = id
        self.user = user
        self.seq = seq
        self.type = type
        self.document = document
        for name, value in fields.items():
            setattr(self, name, value)

    def __copy__(self):
        cdef Entry made = Entry.__new__(Entry)
        made.offset = self.offset
        made.record = self.record
        made.id = self.id
        made.user = self.user
        made.seq = self.seq
        made.type = self.type
        made.document = self.document
        made.timestamp = self.timestamp
        made.size = self.size
        made.status = self.status
        made.attempts = self.attempts
        made.error = self.error
        made.reason = self.reason
        made.letter = self.letter
        made.lane = self.lane
        made.granted_ms = self.granted_ms
        made.lock_expiry_ms = self.lock_expiry_ms
        made.look = self.look
        made.arrived_ms = self.arrived_ms
        made.passed = self.passed
        made.held = self.held
        made.go = self.go
        return made

    def __repr__(self):
        return (
            f"Entry(offset={self.offset}, id={self.id!r}, user={self.user!r}, seq={self.seq}, "
            f"status={self.status!r}, attempts={self.attempts}, reason={self.reason!r}, "
            f"error={self.error!r}, letter={self.letter}, look={self.look}, passed={self.passed}, "
            f"held={self.held}, go={self.go})"
        )


@cython.final
@cython.freelist(1024)
@cython.no_gc  # as above
cdef class UserEffects:
    def __init__(self, user, has_next, gaps=(), entries=None, dense=False):
        self.user = user
        self.has_next = has_next
        self.gaps = gaps
        self.entries = [] if entries is None else entries
        self.dense = dense

    def __repr__(self):
        return f"UserEffects({self.user!r}, {self.has_next}, {self.gaps}, {self.entries}, {self.dense})"


@cython.final
@cython.freelist(64)
cdef class Event:
    cdef public str id
    cdef public str user_id
    cdef public str type
    cdef public dict payload
    cdef public object seq
    cdef public object timestamp
    cdef public object attempt
    cdef public object partition
    cdef public object offset
    cdef public dict document
    cdef object _record

    def __init__(
        self, id, user_id, type, payload, seq, timestamp, attempt, partition, offset, document, record=None
    ):
        self.id = id
        self.user_id = user_id
        self.type = type
        self.payload = payload
        self.seq = seq
        self.timestamp = timestamp
        self.attempt = attempt
        self.partition = partition
        self.offset = offset
        self.document = document
        self._record = record

    @property
    def headers(self):
        return headers_of(self._record) if self._record is not None else []

    @property
    def extra(self):
        known = ("id", "userId", "type", "payload", "timestamp")
        return {name: value for name, value in self.document.items() if name not in known}

    def __repr__(self):
        return f"Event(id={self.id!r}, user_id={self.user_id!r}, seq={self.seq!r}, attempt={self.attempt})"


def headers_of(record):
    cdef object given
    cdef PyObject* pair
    cdef Py_ssize_t i
    try:
        given = record.headers()  # from here, for Python's fast calls do not see that it has failed
    except SystemError as error:
        raise ValueError(UNREADABLE) from error
    if given is None:
        return []
    if PyList_CheckExact(given):
        for i in range(PyList_GET_SIZE(given)):
            pair = PyList_GET_ITEM(given, i)
            # what a failed call has left: the next one returns it, and whoever looks at it dies
            if pair is NULL or (
                PyTuple_CheckExact(<object>pair)
                and PyTuple_GET_SIZE(<object>pair) > 0
                and PyTuple_GET_ITEM(<object>pair, 0) is NULL
            ):
                raise ValueError(UNREADABLE)
    return given


cpdef event_of(Entry entry, partition):
    cdef Event made = Event.__new__(Event)
    made.id = entry.id
    made.user_id = entry.user
    made.type = entry.type
    # it is the handler's now, who may change it: another run reads the record again
    made.document = loads(entry.record.value()) if entry.document is None else entry.document
    entry.document = None
    made.payload = made.document["payload"]
    made.seq = entry.seq or None
    made.timestamp = entry.timestamp
    made.attempt = entry.attempts + 1
    made.partition = partition
    made.offset = entry.offset
    made._record = entry.record
    return made


cdef inline Entry _at(list entries, Py_ssize_t i):
    return <Entry?>PyList_GET_ITEM(entries, i)


cpdef bint is_ordinary(Entry entry):
    return (
        entry.attempts == 1
        and not entry.passed
        and not entry.letter
        and (entry.status is "processed" or entry.status == "processed")
    )


def take_ids(list entries not None, Py_ssize_t at, dict ids not None, int64_t now_ms, list held_ms not None):
    cdef Py_ssize_t i
    cdef Entry entry
    for i in range(at, PyList_GET_SIZE(entries)):
        entry = _at(entries, i)
        if entry.letter or entry.look or PyDict_SetDefault(ids, entry.id, entry) is not <PyObject*>entry:
            return i
        if entry.arrived_ms != now_ms:
            PyList_Append(held_ms, now_ms - entry.arrived_ms)
    return PyList_GET_SIZE(entries)


def free_ids(list entries not None, dict ids not None):
    cdef Py_ssize_t i
    cdef Entry entry
    for i in range(PyList_GET_SIZE(entries)):
        entry = _at(entries, i)
        if PyDict_GetItemWithError(ids, entry.id) is <PyObject*>entry:
            PyDict_DelItem(ids, entry.id)


def all_sequenced(list entries not None):
    cdef Py_ssize_t i
    for i in range(PyList_GET_SIZE(entries)):
        if not _at(entries, i).seq:
            return False
    return True


def grant(
    list entries not None, list verdicts not None, Py_ssize_t at, int64_t now_ms, int64_t expiry_ms
):
    cdef Py_ssize_t i
    if PyList_GET_SIZE(verdicts) != PyList_GET_SIZE(entries):
        raise ValueError(f"{len(verdicts)} verdicts for {len(entries)} entries")
    for i in range(at, PyList_GET_SIZE(entries)):
        if <int64_t>verdicts[i]:
            return i
        _at(entries, i).granted_ms = now_ms
        _at(entries, i).lock_expiry_ms = expiry_ms
    return PyList_GET_SIZE(entries)


def oldest_grant(list entries not None):
    cdef Py_ssize_t i
    cdef int64_t oldest = 0
    for i in range(PyList_GET_SIZE(entries)):
        if i == 0 or _at(entries, i).granted_ms < oldest:
            oldest = _at(entries, i).granted_ms
    return oldest


def take_outcomes(list entries not None, list outcomes not None, Py_ssize_t at):
    cdef Py_ssize_t i
    cdef Entry entry
    if PyList_GET_SIZE(outcomes) != PyList_GET_SIZE(entries):
        raise ValueError(f"{len(outcomes)} outcomes for {len(entries)} entries")
    for i in range(at, PyList_GET_SIZE(entries)):
        entry = _at(entries, i)
        if <object>PyList_GET_ITEM(outcomes, i) is not None or entry.passed:
            return i
        entry.attempts += 1
        entry.status = "processed"
    return PyList_GET_SIZE(entries)


def group_by_user(
    list entries not None,
    dict groups not None,
    set has_next not None,
    set sparse not None,
    list settled not None,
    list loose not None,
    list letters not None,
):
    cdef Py_ssize_t i
    cdef Entry entry
    cdef UserEffects group
    cdef PyObject* found
    for i in range(PyList_GET_SIZE(entries)):
        entry = _at(entries, i)
        if entry.letter:
            PyList_Append(letters, entry)
        elif entry.look or not entry.seq:
            PyList_Append(loose, entry)
        else:
            found = PyDict_GetItemWithError(groups, entry.user)
            if found is NULL:
                group = UserEffects.__new__(UserEffects)
                group.user = entry.user
                group.has_next = entry.user in has_next
                group.gaps = ()
                group.entries = [entry]
                group.dense = not sparse or entry.user not in sparse
                PyDict_SetItem(groups, entry.user, group)
            else:
                PyList_Append((<UserEffects>found).entries, entry)
        if not entry.reason:
            PyList_Append(settled, entry.offset)


def settle_groups(list groups not None, set has_next not None, list users not None, list applied not None):
    cdef list others = []
    cdef Py_ssize_t at
    cdef Py_ssize_t i
    cdef Py_ssize_t count
    cdef Py_ssize_t first = 0
    cdef UserEffects group
    cdef Entry entry
    for at in range(PyList_GET_SIZE(groups)):
        group = <UserEffects?>PyList_GET_ITEM(groups, at)
        count = PyList_GET_SIZE(group.entries)
        for i in range(count):
            entry = _at(group.entries, i)
            if entry.passed or entry.reason or entry.status != "processed":
                break
        else:
            if count and not group.gaps:
                if has_next:
                    has_next.discard(group.user)
                for i in range(count):
                    PyList_Append(users, group.user)
                    PyList_Append(applied, <object>PyList_GET_ITEM(group.entries, i))
                first += count
                continue
        others.append((at, first))
        first += count
    return others


def latencies(list entries not None, int64_t now_ms, int64_t most):
    cdef list told = []
    cdef Py_ssize_t i
    cdef int64_t at
    cdef int64_t taken
    cdef int overflow = 0
    for i in range(PyList_GET_SIZE(entries)):
        at = PyLong_AsLongLongAndOverflow(_at(entries, i).timestamp, &overflow)
        if overflow or at > now_ms:
            taken = 0 if overflow >= 0 else most
        elif at < now_ms - most:
            taken = most
        else:
            taken = now_ms - at
        PyList_Append(told, taken)
    return told
