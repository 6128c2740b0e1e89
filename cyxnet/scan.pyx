# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
"""What a message holds that msgspec lets through, without decoding it: half a microsecond for MessagePack of 2 kB.

Those are numbers that are not finite, whole ones that nobody can store, and lists in lists in lists: how deep these may
go depends on the Python (3.11 takes some hundred, 3.13 ten thousand) and on who calls. Every message that comes is
looked through for them, and of the log each twice: that is worth more than a search for bytes that look like such.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

NOT_FINITE, BEYOND_63_BITS, TOO_DEEP = 1, 2, 4

cdef enum:
    DEEPEST = 128  # lists and maps, each in the one before, that are told apart

cdef int[10] NUMBER_BYTES = [4, 8, 1, 2, 4, 8, 1, 2, 4, 8]  # float32, float64, uint8 to uint64, int8 to int64


cdef inline uint64_t whole(const uint8_t *at, int width) noexcept nogil:
    """A whole number of 1, 2, 4 or 8 bytes, the highest first."""
    cdef uint64_t number = 0
    cdef int place
    for place in range(width):
        number = number << 8 | at[place]
    return number


cdef int found_in(const uint8_t *at, uint64_t left, int deepest) noexcept nogil:
    cdef uint64_t wanted = 1, size, items  # values to come in this list; bytes and values behind the first byte of one
    cdef uint64_t[DEEPEST] around  # values to come in the lists around this one
    cdef int found = 0, width, depth = 0
    cdef uint8_t tag
    while True:
        while not wanted and depth:
            depth -= 1
            wanted = around[depth]
        if not wanted:
            return 3 if left else found
        if wanted > left:
            return 3  # it ends too soon
        tag, at, left, wanted = at[0], at + 1, left - 1, wanted - 1
        size = items = 0
        if tag < 0x80 or tag >= 0xe0:  # a small number
            continue
        elif tag < 0x90:
            items = 2 * (tag & 0x0f)
        elif tag < 0xa0:
            items = tag & 0x0f
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
            items = whole(at, width) * (1 if tag < 0xde else 2)
            size = width
        if size > left:
            return 3
        at, left = at + size, left - size
        if items and depth < deepest:
            around[depth] = wanted
            depth += 1
            wanted = items
        elif items:  # too deep to be told apart; its numbers are still looked at
            found |= 4
            wanted += items


cdef bint is_json_deep(const uint8_t *at, const uint8_t *end, int deepest) noexcept nogil:
    cdef int depth = 0
    while at < end:
        if at[0] == b'"':
            at += 1
            while at < end and at[0] != b'"':
                at += 2 if at[0] == b"\\" else 1
        elif at[0] == b"[" or at[0] == b"{":
            depth += 1
            if depth > deepest:
                return True
        elif at[0] == b"]" or at[0] == b"}":
            depth -= 1
        at += 1
    return False


def strange(bytes payload not None, int deepest=DEEPEST):
    """NOT_FINITE, BEYOND_63_BITS and TOO_DEEP, added up: which of them a message may hold, also in the key of a map.

    deepest: lists and maps, each in the one before, that are not too deep; at most 128. The first two for bytes that
    are no message.
    """
    return found_in(<const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), min(deepest, DEEPEST))


def json_is_deep(bytes payload not None, int deepest=DEEPEST):
    """Whether lists and objects of JSON go deeper than that. Of bytes that are no JSON nothing is known."""
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(payload)
    return bool(is_json_deep(at, at + PyBytes_GET_SIZE(payload), deepest))
