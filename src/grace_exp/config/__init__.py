"""Schemas of the settings, and the way from YAML to a checked configuration."""
