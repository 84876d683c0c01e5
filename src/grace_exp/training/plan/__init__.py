"""What a run will take, computed from shapes: memory of every part, tokens, FLOPs, hours."""
