/* What makes a class written in Cython, and its subclasses in Python, as fast as the interpreter's own. */
#ifndef CYX_REUSE_H
#define CYX_REUSE_H

#include <Python.h>
#include <stddef.h>
#include <string.h>

/* Cython puts an operator into a class as a method, too. A subclass made in Python then calls that, by its name, where
 * it would inherit the function itself if it found the usual wrapper of it. `like`: such a wrapper of another class. */
static int cyx_inherit_operator(PyTypeObject *type, PyObject *name, PyObject *like) {
    static const struct {
        const char *name;
        size_t offset;
    } known[] = {
        {"__add__", offsetof(PyNumberMethods, nb_add)},
        {"__sub__", offsetof(PyNumberMethods, nb_subtract)},
        {"__mul__", offsetof(PyNumberMethods, nb_multiply)},
        {"__truediv__", offsetof(PyNumberMethods, nb_true_divide)},
        {"__matmul__", offsetof(PyNumberMethods, nb_matrix_multiply)},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (PyUnicode_CompareWithASCIIString(name, known[i].name) || !Py_IS_TYPE(like, &PyWrapperDescr_Type)) continue;
        void *function = *(void **)((char *)type->tp_as_number + known[i].offset);
        PyObject *made = PyDescr_NewWrapper(type, ((PyWrapperDescrObject *)like)->d_base, function);
        int status = made ? PyDict_SetItem(type->tp_dict, name, made) : -1;
        Py_XDECREF(made);
        PyType_Modified(type);
        return status;
    }
    return 0;
}

/* Objects of the class are functions: they are called by what is at `offset` in them, without a tuple of arguments, are
 * methods where a class has them, and errors that name the class of what was given say "function". */
static void cyx_as_function(PyTypeObject *type, Py_ssize_t offset) {
    type->tp_name = "cyxcore.kernels.tensors.function";
    type->tp_vectorcall_offset = offset;
    type->tp_call = PyVectorcall_Call;
    type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR;
    PyType_Modified(type);
}

/* Tensors come and go with every operation: memory of the last that went is kept for the next that comes.
 *
 * What is kept is what the interpreter would free, so nothing is left in it; it is made anew like fresh memory. Only of
 * the class itself: a subclass may be of another size, and has its own tp_alloc and tp_free. */
#ifdef Py_GIL_DISABLED
static void cyx_reuse(PyTypeObject *type) { (void)type; }
static void cyx_reuse_too(PyTypeObject *type) { (void)type; }
#else
enum { CYX_KEPT_OBJECTS = 256 };
static PyTypeObject *cyx_reused;
static PyObject *cyx_kept_objects[CYX_KEPT_OBJECTS];
static int cyx_kept_count;

static PyObject *cyx_reusing_alloc(PyTypeObject *type, Py_ssize_t items) {
    if (type != cyx_reused || !cyx_kept_count) return PyType_GenericAlloc(type, items);
    PyObject *object = cyx_kept_objects[--cyx_kept_count];
    memset((char *)object + sizeof(PyObject), 0, (size_t)type->tp_basicsize - sizeof(PyObject));
    (void)PyObject_Init(object, type);
    PyObject_GC_Track(object);
    return object;
}

static void cyx_keeping_free(void *object) {
    if (cyx_kept_count < CYX_KEPT_OBJECTS) {
#ifdef Py_TPFLAGS_MANAGED_DICT /* its two pointers lie in front of the collector's own */
        if (PyType_HasFeature(cyx_reused, Py_TPFLAGS_MANAGED_DICT)) {
            ((PyObject **)object)[-3] = NULL;
            ((PyObject **)object)[-4] = NULL;
        }
#endif
        cyx_kept_objects[cyx_kept_count++] = (PyObject *)object;
    } else {
        PyObject_GC_Del(object);
    }
}

static void cyx_reuse(PyTypeObject *type) {
    if (type->tp_free != PyObject_GC_Del || type->tp_itemsize) return;
    cyx_reused = type;
    type->tp_alloc = cyx_reusing_alloc;
    type->tp_free = cyx_keeping_free;
}

/* What becomes an object of the class or of this subclass, which is like it, is of both: Python asks that both free alike. */
static void cyx_reuse_too(PyTypeObject *type) { type->tp_free = cyx_reused ? cyx_reused->tp_free : type->tp_free; }
#endif
#endif
