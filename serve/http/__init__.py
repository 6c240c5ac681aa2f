"""The HTTP API, and what lies beside it: keys, uploads, thumbnails."""
