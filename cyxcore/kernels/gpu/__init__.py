"""The ops on an NVIDIA device: Triton kernels, cuBLAS for products, CuPy for memory and mere movement.

    chains    element-wise ops, as many as follow each other in one kernel (its source is generated)
    fixed     the other kernels, written by hand
    fusion    which calls of a program become one kernel
    table     op -> launches: which kernel, which grid, which block sizes
    compiling Triton as a compiler (no torch, no driver): a kernel to machine code
    cublas    matrix products
    cublaslt  the same, with a bias and ReLU behind them
    cuda      memory, streams, launches, graphs: the backend that cyxcore/device.py chooses

Everything but `cuda`, `cublas` and `cublaslt` runs without a device: the tests interpret the same kernels on NumPy
arrays.
"""
