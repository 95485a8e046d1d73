"""Turn users' files into batches, and results into figures."""
