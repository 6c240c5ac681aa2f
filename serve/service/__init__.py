"""The service: requests in, answers of one generation out, over replicas that do the work."""
