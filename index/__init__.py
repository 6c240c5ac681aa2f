"""Features to ranked ids: codebooks, encoders, quantizers, shards, generations, search, metrics."""
