"""A shop that has been running for a while, without background jobs."""
