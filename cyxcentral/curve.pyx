# cython: boundscheck=False, wraparound=False, freethreading_compatible=False
"""Ed25519 of many at once, eight side by side (lanes.c): for the process that looks at deposits beside central, and
for central itself while that one is not there.

That takes a third of the time that one after the other takes. A yes here is a yes of ed25519-dalek's verify_strict,
which the chain uses too; whoever hears no asks that one.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

import hashlib

cdef extern from "lanes.h":
    int LANES
    int lanes_begin()
    void lanes_good(const uint8_t *keys, const uint8_t *signatures, const uint8_t *hashes, uint8_t *good) nogil
    void lanes_on_curve(const uint8_t *encoded, uint8_t *found) nogil

cdef extern from *:
    """
    #if defined(__x86_64__)
    #define cyx_leave_mmx() __builtin_ia32_emms()
    #else
    #define cyx_leave_mmx() ((void)0)
    #endif
    """
    void cyx_leave_mmx()

PRESENT = bool(lanes_begin())  # of this processor
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the base point


def good(list asked):
    """Which signatures are good, of (public key of 32 bytes, signature of 64, message) each.

    False may also be said of one that is good by other rules than the chain's. Raises RuntimeError without PRESENT.
    """
    if not PRESENT:
        raise RuntimeError("expected a processor with AVX-512 IFMA, this one has none; check one after the other")
    cdef uint8_t[8 * 32] keys
    cdef uint8_t[8 * 64] signatures
    cdef uint8_t[8 * 32] hashes
    cdef uint8_t[8] right
    cdef int lane
    cdef bytes key, signature, message, hashed
    found = []
    for first in range(0, len(asked), LANES):
        some = asked[first : first + LANES]
        for lane in range(LANES):
            if lane < len(some):  # the lanes that are left hold one that was looked at already
                key, signature, message = some[lane]
                if len(key) != 32 or len(signature) != 64:
                    got = f"{len(key)} and {len(signature)}"
                    raise ValueError(f"expected keys of 32 bytes and signatures of 64, got {got}")
                digest = hashlib.sha512(signature[:32] + key + message).digest()
                hashed = (int.from_bytes(digest, "little") % ORDER).to_bytes(32, "little")
            memcpy(keys + 32 * lane, PyBytes_AS_STRING(key), 32)
            memcpy(signatures + 64 * lane, PyBytes_AS_STRING(signature), 64)
            memcpy(hashes + 32 * lane, PyBytes_AS_STRING(hashed), 32)
        with nogil:
            lanes_good(keys, signatures, hashes, right)
        found += [right[lane] != 0 for lane in range(len(some))]
    return found


def on_curve(list encoded):
    """Which of these (32 bytes each) encode a point of the curve. Raises RuntimeError without PRESENT."""
    if not PRESENT:
        raise RuntimeError("expected a processor with AVX-512 IFMA, this one has none; ask for one after the other")
    cdef uint8_t[8 * 32] points
    cdef uint8_t[8] right
    cdef int lane
    cdef bytes point
    found = []
    for first in range(0, len(encoded), LANES):
        some = encoded[first : first + LANES]
        for lane in range(LANES):
            if lane < len(some):
                point = some[lane]
                if len(point) != 32:
                    raise ValueError(f"expected 32 bytes, got {len(point)}")
            memcpy(points + 32 * lane, PyBytes_AS_STRING(point), 32)
        with nogil:
            lanes_on_curve(points, right)
        found += [right[lane] != 0 for lane in range(len(some))]
    return found


def leave_mmx():
    """To be called after LiteSVM ran a program: its compiled code leaves the MMX registers in use, which are those of the
    x87, and until they are given back NumPy's floor division and remainder of floats give NaN in this thread.
    """
    cyx_leave_mmx()
