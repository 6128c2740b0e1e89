"""The buffer protocol, which only a type made in C can have before Python 3.12."""

from cpython.buffer cimport PyObject_GetBuffer


cdef class Exported:
    """A base for what has `_exported()`, an object whose buffer is to be seen as its own."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyObject_GetBuffer(self._exported(), buffer, flags)
