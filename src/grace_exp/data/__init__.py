"""Where text comes from: sources, recipes, schedules and the DataModule."""
