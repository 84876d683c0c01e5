"""Training texts: sources, recipes, schedules and the DataModule."""
