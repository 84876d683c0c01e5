"""Store the source of the user's own functions with the run that called them."""

import hashlib
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.config.groups import Groups
from grace_exp.config.used_parts import own_parts
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic

FOLDER = "own_parts"


@rank_zero_only
def record_own_parts(run_dir: Path, config: Groups) -> None:
    """Copies each source file to `<run_dir>/own_parts/<digits of its sha256>_<name>`, and lists all in index.json.

    A resumed run whose file has changed stores both copies.

    Raises:
        ConfigError: A part cannot be found.
    """
    index: list[dict[str, str | None]] = []
    for part in own_parts(config):
        file, copy = part.source(), None
        if file is not None:
            text = file.read_text(encoding="utf-8")
            copy = f"{hashlib.sha256(text.encode()).hexdigest()[:12]}_{file.name}"
            (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
            write_text_atomic(run_dir / FOLDER / copy, text)
        index.append({"key": part.key, "path": part.path, "name": part.name, "source": copy})
    if index:
        (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
        write_json_atomic(run_dir / FOLDER / "index.json", index)
