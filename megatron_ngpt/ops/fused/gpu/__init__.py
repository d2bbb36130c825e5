"""The operations as Triton kernels, for CUDA devices."""
