"""What a run leaves behind: metrics, sample tables, provenance, summary, W&B."""
