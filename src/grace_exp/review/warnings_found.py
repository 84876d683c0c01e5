"""The warnings of a run: those given during the run, and those that its files show."""

from grace_exp.review.run_files import Row, RunFiles
from grace_exp.reward.inert import NO_SHARE


def warnings_of(run: RunFiles) -> list[Row]:
    """Return each warning as `step` (None: for the whole run), `kind` and `message`."""
    found = [dict(row) for row in run.warnings]
    skipped = run.last("train/skipped_updates")
    if skipped and not any(row["kind"] == "skipped_updates" for row in found):
        message = f"{skipped:.0f} updates were skipped because a loss or gradient was nan or inf (folder nonfinite/)."
        found.append({"step": None, "kind": "skipped_updates", "message": message})
    if not any(row["kind"] == "inert_term" for row in found):
        found += [{"step": None, "kind": "inert_term", "message": text} for text in _inert_terms(run)]
    return found


def _inert_terms(run: RunFiles) -> list[str]:
    terms = {name: term for name, term in run.config["reward"].get("terms", {}).items() if term is not None}
    messages = []
    for name, term in terms.items():
        shares = [value for value in run.metrics.get(f"reward/{name}/advantage_share", []) if value is not None]
        if term["weight"] and shares and max(map(abs, shares)) <= NO_SHARE:
            messages.append(
                f"reward.terms.{name} had no share in the advantages in any step: its weight of {term['weight']} "
                "trained nothing."
            )
    return messages
