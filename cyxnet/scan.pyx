# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
"""What numbers a MessagePack message holds, without decoding it: half a microsecond for one of 2 kB.

msgspec lets numbers through that are not finite, and whole ones that nobody can store. Every message that comes is
looked through for them, and of the log each twice: that is worth more than a search for bytes that look like such.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

NOT_FINITE, BEYOND_63_BITS = 1, 2

cdef int[10] NUMBER_BYTES = [4, 8, 1, 2, 4, 8, 1, 2, 4, 8]  # float32, float64, uint8 to uint64, int8 to int64


cdef inline uint64_t whole(const uint8_t *at, int width) noexcept nogil:
    """A whole number of 1, 2, 4 or 8 bytes, the highest first."""
    cdef uint64_t number = 0
    cdef int place
    for place in range(width):
        number = number << 8 | at[place]
    return number


cdef int found_in(const uint8_t *at, uint64_t left) noexcept nogil:
    cdef uint64_t wanted = 1, size  # values that are still to come; bytes of this one behind its first
    cdef int found = 0, width
    cdef uint8_t tag
    while wanted:
        if wanted > left:
            return 3  # it ends too soon
        tag, at, left, wanted = at[0], at + 1, left - 1, wanted - 1
        size = 0
        if tag < 0x80 or tag >= 0xe0:  # a small number
            continue
        elif tag < 0x90:
            wanted += 2 * (tag & 0x0f)
        elif tag < 0xa0:
            wanted += tag & 0x0f
        elif tag < 0xc0:
            size = tag & 0x1f
        elif tag < 0xc4:  # None, False and True; 0xc1 is none
            if tag == 0xc1:
                return 3
        elif tag < 0xca or 0xd9 <= tag <= 0xdb:  # bytes, an extension, text: its length comes first
            width = 1 << ((tag - 0xc4) % 3 if tag < 0xca else tag - 0xd9)
            if left < <uint64_t>width:
                return 3
            size = width + whole(at, width) + (0xc7 <= tag < 0xca)
        elif tag < 0xd4:  # a number
            size = NUMBER_BYTES[tag - 0xca]
            if left < size:
                return 3
            if tag == 0xca and at[0] & 0x7f == 0x7f and at[1] & 0x80:
                found |= 1
            elif tag == 0xcb and at[0] & 0x7f == 0x7f and at[1] & 0xf0 == 0xf0:
                found |= 1
            elif tag == 0xcf and at[0] & 0x80:
                found |= 2
        elif tag < 0xd9:  # an extension of 1, 2, 4, 8 or 16 bytes
            size = 1 + (1 << (tag - 0xd4))
        else:  # a list (0xdc, 0xdd), a map
            width = 4 if tag == 0xdd or tag == 0xdf else 2
            if left < <uint64_t>width:
                return 3
            wanted += whole(at, width) * (1 if tag < 0xde else 2)
            size = width
        if size > left:
            return 3
        at, left = at + size, left - size
    return 3 if left else found


def strange(bytes payload not None):
    """NOT_FINITE and BEYOND_63_BITS, added up: which of these numbers a message may hold, also as the key of a map.

    Both for bytes that are no message.
    """
    return found_in(<const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
