"""What a run records: metrics, sample tables, provenance, summary, W&B."""
