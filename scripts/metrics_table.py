"""Writes docs/metrics.md from the list of metrics: python scripts/metrics_table.py."""

from pathlib import Path

from grace_exp.tracking.metrics import markdown_table

if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "metrics.md").write_text(markdown_table(), encoding="utf-8")
