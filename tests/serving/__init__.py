"""Tools that put a running server under load and through faults."""
