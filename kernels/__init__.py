"""Kernels of the ops: `<op>.py` has the reference in plain PyTorch, `<op>_triton.py` the Triton kernel."""
