"""Benchmarks, one script or folder for each question. From the repository's root: python -m benchmarks.NAME."""
