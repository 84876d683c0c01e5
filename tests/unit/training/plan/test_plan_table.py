"""docs/plan.md shows what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("plan_table", ROOT / "scripts" / "plan_table.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert script.page(text) == text, "run python scripts/plan_table.py"
