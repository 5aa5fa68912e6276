"""One file an op: its plain-PyTorch reference, and in time the Triton kernel of the same signature."""
