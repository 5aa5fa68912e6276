"""Everything that needs a GPU, in stages with limits: benchmarks/run_gpu.sh."""
