"""The speed of the GPU kernels, against the hardware and rivals: python -m benchmarks.kernel_speed.run."""
