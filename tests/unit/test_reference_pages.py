import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "reference_pages.py"))


@pytest.mark.parametrize("name", SCRIPT["PAGES"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == SCRIPT["PAGES"][name](), "run: python scripts/reference_pages.py"


def test_a_setting_has_its_values_default_and_docstring() -> None:
    row = next(line for line in SCRIPT["settings_page"]().splitlines() if line.startswith("| `rollout.group_size` "))
    assert (
        row == "| `rollout.group_size` | a whole number, at least 1 | `8` | K: rationales sampled per trained text. |"
    )


def test_settings_inside_mappings_and_groups_that_are_off_are_listed() -> None:
    page = SCRIPT["settings_page"]()
    for key in (
        "data.sources.<name>.path",
        "backbone.lora.rank",
        "objective.replay.capacity",
        "reward.terms.infonce.weight",
    ):
        assert f"| `{key}` |" in page


def test_every_setting_says_what_it_is() -> None:
    rows = [line for line in SCRIPT["settings_page"]().splitlines() if line.startswith("| `")]
    terms = [row for row in rows if row.startswith("| `reward.terms.") and "see the keys below" in row]
    assert len(terms) == 12  # described in docs/reference.md
    assert [row for row in rows if row.endswith("|  |") and row not in terms] == []


def test_settings_that_no_run_changes_exist() -> None:
    page = SCRIPT["settings_page"]()
    assert [key for key in SCRIPT["UNCHANGED"] if page.count(f"| `{key}` |") != 2] == []


def test_every_choice_of_the_command_line_is_described() -> None:
    rows = [line for line in SCRIPT["reference_page"]().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []


def test_a_cell_holds_no_markup_outside_of_code() -> None:
    assert SCRIPT["cell"]("a|b *c* `x_<y>`") == "a\\|b \\*c\\* `x_<y>`"
