"""Benchmarks: ratios between the product and bare kernels, measured in one run. Nothing asserts seconds."""
