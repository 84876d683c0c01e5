"""Schemas of the settings, and the code that turns YAML into a checked configuration."""
