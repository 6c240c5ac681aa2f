"""Images to features: sources, safe decoding, local features, object storage, the parallel engine."""
