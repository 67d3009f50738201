"""What the other compiled modules use of this one."""

from libc.stdint cimport int64_t


cdef bint plain(object text) noexcept
cdef int64_t partition_for(str user, int64_t partitions) except -1
