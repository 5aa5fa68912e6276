"""What a served judge gives its clients: benchmarks/serving/__main__.py says what is measured against what."""
