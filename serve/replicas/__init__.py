"""What does the work of a search: scans of shards, encoding of queries, second looks; in one process."""
