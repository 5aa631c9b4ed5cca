"""What the benchmark scripts share: models, servers and load."""
