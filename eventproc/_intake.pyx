"""The fast way into a worker. Contracts are in _intake.pyi."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItemWithError
from cpython.list cimport PyList_Append, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from eventproc._entry cimport Entry
from eventproc._reorder cimport partition_for, plain

cdef int64_t MAX_SEQ = (<int64_t>1 << 53) - 1
cdef bytes NAMES = b'{"id":0,"userId":0,"type":0,"payload":0,"timestamp":0,"seq":0}'


cdef inline Py_ssize_t _openings(const char* data, Py_ssize_t size) noexcept nogil:
    """How many objects and arrays are opened at most: the value is nested no deeper than that."""
    cdef Py_ssize_t i
    cdef Py_ssize_t count = 0
    for i in range(size):
        count += (data[i] == c'{') + (data[i] == c'[')
    return count


@cython.final
cdef class PlainIntake:
    cdef object _loads
    cdef object _json_error
    cdef object _id, _user_id, _type, _payload, _timestamp, _seq
    cdef type _class  # of the records so far, and its methods: looked up once, not for every record
    cdef object _value_of, _key_of, _offset_of, _timestamp_of
    cdef str _reserved
    cdef int64_t _partition
    cdef int64_t _partitions
    cdef Py_ssize_t _max_event_bytes
    cdef Py_ssize_t _max_depth

    def __init__(self, loads, json_error, topic, partition, partitions, max_event_bytes, max_depth):
        self._loads = loads
        self._json_error = json_error
        # as the decoder keeps them: what it makes mostly has these very objects, and they are not compared
        self._id, self._user_id, self._type, self._payload, self._timestamp, self._seq = loads(NAMES)
        self._reserved = topic + "-"
        self._partition = partition
        self._partitions = partitions
        self._max_event_bytes = max_event_bytes
        self._max_depth = max_depth

    cdef int _learn(self, type records) except -1:
        self._value_of, self._key_of, self._offset_of, self._timestamp_of = (
            records.value, records.key, records.offset, records.timestamp
        )
        self._class = records
        return 0

    def take(
        self,
        list records not None,
        Py_ssize_t at,
        int64_t now_ms,
        list users not None,
        list seqs not None,
        list offsets not None,
        list sizes not None,
        list entries not None,
    ):
        cdef Py_ssize_t i
        cdef Py_ssize_t size
        cdef int64_t seq
        cdef int overflow = 0
        cdef object record
        cdef object offset
        cdef object value
        cdef object key
        cdef object document
        cdef object payload
        cdef object seq_object
        cdef object timestamp
        cdef PyObject* found
        cdef PyObject* id
        cdef PyObject* user
        cdef PyObject* kind
        cdef Entry entry
        for i in range(at, PyList_GET_SIZE(records)):
            record = <object>PyList_GET_ITEM(records, i)
            if type(record) is not self._class:
                self._learn(type(record))
            value = self._value_of(record)
            if not PyBytes_CheckExact(value):
                return i
            key = self._key_of(record)
            size = PyBytes_GET_SIZE(value)
            if _openings(PyBytes_AS_STRING(value), size) > self._max_depth:
                return i
            if key is not None:
                size += len(key)
            if size > self._max_event_bytes:
                return i
            try:
                document = self._loads(value)
            except self._json_error:
                return i
            if not PyDict_CheckExact(document):
                return i
            id = PyDict_GetItemWithError(document, self._id)
            user = PyDict_GetItemWithError(document, self._user_id)
            kind = PyDict_GetItemWithError(document, self._type)
            if id is NULL or user is NULL or kind is NULL:
                return i
            if not (plain(<object>id) and plain(<object>user) and plain(<object>kind)):
                return i
            if (
                <str>id == "list"
                or (<str>id).startswith(self._reserved)
                or (<str>user).startswith("ip:")
            ):
                return i
            found = PyDict_GetItemWithError(document, self._payload)
            if found is NULL or not PyDict_CheckExact(<object>found):
                return i
            payload = <object>found
            found = PyDict_GetItemWithError(payload, self._seq)
            if found is NULL:
                seq = 0
                seq_object = 0
            else:
                seq_object = <object>found
                if not PyLong_CheckExact(seq_object):
                    return i
                seq = PyLong_AsLongLongAndOverflow(seq_object, &overflow)
                if overflow or seq < 1 or seq > MAX_SEQ:
                    return i
            if self._partitions and partition_for(<str>user, self._partitions) != self._partition:
                return i
            found = PyDict_GetItemWithError(document, self._timestamp)
            if found is not NULL and PyLong_CheckExact(<object>found):
                timestamp = <object>found
            else:
                timestamp = self._timestamp_of(record)[1]
            offset = self._offset_of(record)
            entry = Entry.__new__(Entry)
            entry.offset = offset
            entry.record = record
            entry.id = <str>id
            entry.user = <str>user
            entry.seq = seq
            entry.type = <str>kind
            entry.document = document
            entry.timestamp = timestamp
            entry.size = size
            entry.lane = <str>user if seq else offset
            entry.arrived_ms = now_ms
            PyList_Append(users, entry.user)
            PyList_Append(seqs, seq_object)
            PyList_Append(offsets, offset)
            PyList_Append(sizes, size)
            PyList_Append(entries, entry)
        return PyList_GET_SIZE(records)
