"""The same work on Ray Serve: applications, the handles over them, and what they are told."""
