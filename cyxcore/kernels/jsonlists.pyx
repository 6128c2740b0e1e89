# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=False
"""Nested lists of numbers in JSON, read straight into a float32 array: no Python object for each number.

A number is read as the float64 nearest to it and that is rounded to float32, as whoever decodes JSON into floats does;
so the bits are the same. Where digits and power of ten are float64 without an error, their quotient or product is that
nearest one (Clinger, 1990, "How to read floating point numbers accurately"). Of up to 62 bits of digits it is computed
as a sum of two float64 (Dekker, 1971, "A floating-point technique for extending the available precision"), whose error
is far below the last bit: where that error could matter, and for all other numbers, Python reads.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.math cimport fma
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef extern from "Python.h":
    double PyOS_string_to_double(const char *text, char **end, void *overflow) except? -1.0

cdef extern from "float.h":
    int FLT_EVAL_METHOD  # 0, 1: float64 is computed as float64
    double FLT_MAX

DEF MOST_DIMENSIONS = 16

cdef double[23] POWERS = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
]
cdef int MOST_POWER = 22
cdef int MOST_DIGITS = 19  # which a uint64 holds, whichever they are
cdef uint64_t MOST_EXACT = 1ULL << 53  # whole numbers up to this one are float64
cdef uint64_t MOST_SUMMED = 1ULL << 62  # and up to this one the sum of two
cdef double DOUBT = 2.0**-95  # the sum of two float64 is nearer than this, relatively: by a factor of 2**7


cdef struct Reader:
    const char *at  # a 0 lies behind the text
    int64_t *shape  # of a sample
    int dimensions


cdef inline void skip(Reader *reader) noexcept:
    while reader.at[0] == c" " or reader.at[0] == c"\n" or reader.at[0] == c"\r" or reader.at[0] == c"\t":
        reader.at += 1


cdef inline bint is_digit(char letter) noexcept:
    return c"0" <= letter <= c"9"


cdef inline bint scale(uint64_t digits, int power, double *into) noexcept:
    """The float64 nearest to digits * 10**power; False where it is not known."""
    cdef double high, low, scaled, rest, doubt, tens
    if FLT_EVAL_METHOD not in (0, 1) or not -MOST_POWER <= power <= MOST_POWER or digits > MOST_SUMMED:
        return False
    high = <double>digits
    tens = POWERS[power if power >= 0 else -power]
    scaled = high * tens if power >= 0 else high / tens
    into[0] = scaled
    if digits <= MOST_EXACT:
        return True
    low = <double>(<int64_t>digits - <int64_t>high)
    if power >= 0:
        rest = fma(high, tens, -scaled) + low * tens
    else:
        rest = (fma(-scaled, tens, high) + low) / tens
    doubt = scaled * DOUBT
    into[0] = scaled + rest
    return scaled + (rest - doubt) == into[0] == scaled + (rest + doubt)


cdef bint read_number(Reader *reader, float *into) except -1:
    """False where no finite float32 stands here."""
    cdef const char *begin = reader.at
    cdef const char *at = begin
    cdef uint64_t digits = 0
    cdef int count = 0, exponent = 0, said = 0
    cdef bint negative = at[0] == c"-", is_whole = True, below_zero
    cdef double value
    cdef char *stopped
    at += negative
    if not is_digit(at[0]) or (at[0] == c"0" and is_digit(at[1])):
        return False
    while is_digit(at[0]):
        digits = digits * 10 + <uint64_t>(at[0] - c"0")
        count += count > 0 or digits != 0  # not the zeros before
        at += 1
    if at[0] == c".":
        is_whole = False
        at += 1
        if not is_digit(at[0]):
            return False
        while is_digit(at[0]):
            digits = digits * 10 + <uint64_t>(at[0] - c"0")
            count += count > 0 or digits != 0  # not the zeros before
            exponent -= 1
            at += 1
    if at[0] == c"e" or at[0] == c"E":
        is_whole = False
        at += 1
        below_zero = at[0] == c"-"
        at += at[0] == c"-" or at[0] == c"+"
        if not is_digit(at[0]):
            return False
        while is_digit(at[0]):
            if said < 100_000:
                said = said * 10 + (at[0] - c"0")
            at += 1
        exponent += -said if below_zero else said
    reader.at = at
    if is_whole and digits == 0 and count == 0:
        value = 0.0  # -0 is a whole number, and they have one zero
    elif count <= MOST_DIGITS and scale(digits, exponent, &value):
        value = -value if negative else value
    else:
        value = PyOS_string_to_double(begin, &stopped, NULL)  # too large: infinite
        if stopped != at:
            return False
    if not -FLT_MAX <= value <= FLT_MAX:
        return False
    into[0] = <float>value
    return True


cdef bint read_list(Reader *reader, int dimension, float **into) except -1:
    """One list of `dimension`, and the spaces behind it; False where none of that length stands here."""
    cdef int64_t place, length = reader.shape[dimension]
    cdef bint is_innermost = dimension == reader.dimensions - 1
    if reader.at[0] != c"[":
        return False
    reader.at += 1
    for place in range(length):
        if place:
            if reader.at[0] != c",":
                return False
            reader.at += 1
        skip(reader)
        if is_innermost:
            if not read_number(reader, into[0]):
                return False
            into[0] += 1
            skip(reader)
        elif not read_list(reader, dimension + 1, into):
            return False
    if reader.at[0] != c"]":
        return False
    reader.at += 1
    skip(reader)
    return True


def read(bytes text, Py_ssize_t begin, shape, bint several):
    """The list that begins at text[begin]: (array (rows, *shape) of float32, where what is behind it begins).

    several: it is a list of samples of this shape; else it is one. None for whatever is no such list, also for one of
    numbers that float32 does not have: the caller reads that another way, or says what is wrong with it.
    """
    cdef int64_t[MOST_DIMENSIONS] sizes
    cdef Reader reader
    cdef int64_t of_one = 1, rows = 0, room = 0
    cdef float *held = NULL
    cdef float *into
    cdef void *larger
    cdef int dimension
    cdef cnp.ndarray array
    if not 0 < len(shape) <= MOST_DIMENSIONS or not 0 <= begin < len(text):
        return None
    for dimension in range(len(shape)):
        sizes[dimension] = shape[dimension]
        if sizes[dimension] <= 0 or of_one > len(text) // sizes[dimension]:  # each number takes more than one letter
            return None
        of_one *= sizes[dimension]
    reader.at = <const char *>text + begin
    reader.shape, reader.dimensions = sizes, len(shape)
    if not several:
        array = np.empty((1, *shape), np.float32)
        into = <float *>cnp.PyArray_DATA(array)
        return (array, reader.at - <const char *>text) if read_list(&reader, 0, &into) else None
    if reader.at[0] != c"[":
        return None
    try:
        while True:
            reader.at += 1  # the bracket, or the comma
            skip(&reader)
            if rows == room:
                room = 2 * room + 1
                larger = PyMem_Realloc(held, <size_t>(room * of_one) * sizeof(float))
                if larger == NULL:
                    raise MemoryError
                held = <float *>larger
            into = held + rows * of_one
            if not read_list(&reader, 0, &into):
                return None
            rows += 1
            if reader.at[0] != c",":
                break
        if reader.at[0] != c"]":
            return None
        reader.at += 1
        skip(&reader)
        array = np.empty((rows, *shape), np.float32)
        memcpy(cnp.PyArray_DATA(array), held, <size_t>(rows * of_one) * sizeof(float))
        return array, reader.at - <const char *>text
    finally:
        PyMem_Free(held)
