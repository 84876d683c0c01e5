"""Train instruct LLMs to embed text by writing rationales (GRACE)."""
