"""What a run will take, from shapes alone: memory of every part, tokens, FLOPs, hours."""
