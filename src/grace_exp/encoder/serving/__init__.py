"""The encoder behind OpenAI's interface for embeddings."""
