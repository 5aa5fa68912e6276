"""Triton kernels, one file an op, each beside its plain-PyTorch reference of the same signature."""
