"""Train models: one loop for every task."""
