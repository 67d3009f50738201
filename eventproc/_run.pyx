"""A sync handler's run over a batch of entries, and the mark of what it runs on. Contracts in _run.pyi."""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.list cimport PyList_Append, PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int64_t

from eventproc._clock cimport MachineClock, monotonic_ms
from eventproc._entry cimport Entry, event_of


@cython.final
cdef class Mark:
    cdef Py_buffer _memory
    cdef volatile int64_t* _words  # another process reads them when this one is dead; NULL: released

    def __init__(self, words not None):
        self.release()
        PyObject_GetBuffer(words, &self._memory, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
        self._words = <volatile int64_t*>self._memory.buf
        if self._memory.len != 2 * sizeof(int64_t):
            self.release()
            raise ValueError(f"a mark is made of 2 words of 8 bytes, not of {len(words)}")

    def __dealloc__(self):
        self.release()

    def __call__(self, int64_t since_ms, int64_t offset=-1):
        self._set(since_ms, offset)

    cdef inline int _set(self, int64_t since_ms, int64_t offset) except -1:
        if self._words is NULL:
            raise ValueError("the mark has been released")
        self._words[1] = offset
        self._words[0] = since_ms
        return 0

    cpdef release(self):
        if self._words is not NULL:
            self._words = NULL
            PyBuffer_Release(&self._memory)


@cython.final
cdef class BatchRun:
    cdef readonly list outcomes
    cdef object _handler
    cdef list _entries
    cdef object _partition
    cdef object _clock
    cdef bint _by_machine  # the clock tells what the machine's tells: no need to call it
    cdef object _mark
    cdef object _not_run
    cdef object _check
    cdef int64_t _slice_ms
    cdef int64_t _until_ms
    cdef set _broken

    def __init__(
        self, handler, list entries not None, partition, clock, mark, slice_ms, not_run, check
    ):
        self.outcomes = []
        self._handler = handler
        self._entries = entries
        self._partition = partition
        self._clock = clock
        self._by_machine = (
            isinstance(clock, MachineClock) and type(clock).monotonic_ms is MachineClock.monotonic_ms
        )
        self._mark = mark
        self._slice_ms = slice_ms
        self._until_ms = -1
        self._not_run = not_run
        self._check = check
        self._broken = set()

    def go_on(self):
        cdef Py_ssize_t i
        cdef int64_t now_ms
        cdef Entry entry
        cdef object returned
        cdef Mark mark = self._mark if isinstance(self._mark, Mark) else None
        for i in range(PyList_GET_SIZE(self.outcomes), PyList_GET_SIZE(self._entries)):
            entry = <Entry?>PyList_GET_ITEM(self._entries, i)
            if self._broken and entry.lane in self._broken:
                PyList_Append(self.outcomes, self._not_run)
                continue
            if entry.passed:
                PyList_Append(self.outcomes, None)
                continue
            now_ms = monotonic_ms() if self._by_machine else self._clock.monotonic_ms()
            if self._until_ms < 0:
                self._until_ms = now_ms + self._slice_ms
            elif now_ms > self._until_ms:
                self._broken.add(entry.lane)
                PyList_Append(self.outcomes, self._not_run)
                continue
            if mark is not None:
                mark._set(now_ms, entry.offset)
            else:
                self._mark(now_ms, entry.offset)
            returned = self._handler(event_of(entry, self._partition))
            if returned is not None:
                self._check(returned)
            PyList_Append(self.outcomes, None)

    def failed(self, error):
        cdef Entry entry = <Entry?>PyList_GET_ITEM(self._entries, PyList_GET_SIZE(self.outcomes))
        self._broken.add(entry.lane)
        PyList_Append(self.outcomes, error)
