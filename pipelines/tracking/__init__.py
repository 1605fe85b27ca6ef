"""MLflow: what a run records, and what a server missed."""
