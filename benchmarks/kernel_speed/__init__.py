"""How fast are the kernels on a GPU? python -m benchmarks.kernel_speed.run."""
