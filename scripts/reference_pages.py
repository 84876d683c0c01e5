"""Writes docs/settings.md and docs/reference.md: python scripts/reference_pages.py."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from grace_exp.config import compose
from grace_exp.config.error_messages import allowed
from grace_exp.config.root import GraceConfig
from grace_exp.objective import ALGORITHMS
from grace_exp.reward.terms import TERMS

ROOT = Path(__file__).parents[1]
WRITTEN_BY = "Written by `python scripts/reference_pages.py` from {}: edit those."
REQUIRED = "required"
UNCHANGED = {
    "optim.beta2": "who trains long runs with other moments than AdamW's usual ones",
    "data.batch_by": "who mixes sources whose texts are too easily told apart",
    "data.weights_temperature": "who mixes sources of very different size",
    "data.leak_ngram": "who trains on texts much shorter or longer than sentences",
    "job.mine.range_min": "who mines in a corpus with many unlabelled positives",
    "job.plan.decode_efficiency": "who has measured an engine's decoding",
    "job.serve.api_key_env": "who serves to others than this machine",
    "job.serve.gather_ms": "who weighs latency against throughput",
    "job.serve.shutdown_s": "who runs under a scheduler with a grace period",
    "rollout.vllm.sync_timeout": "who has large weights or a slow disk",
    "rollout.vllm.server.exchange_dir": "who has a server on CPUs with another view of the file system",
    "logger.wandb.upload_export": "who has models too large for W&B",
    "callbacks.watchdog.min_entropy_share": "who trains at another temperature",
    "callbacks.watchdog.max_truncated_share": "who expects rationales to be cut",
    "callbacks.watchdog.max_common_share": "who has many equal texts",
    "callbacks.watchdog.max_zero_spread_share": "who rewards with few distinct values",
}
"""Settings that no experiment, study, example or test changes: who needs them."""
MISSING = object()


@dataclasses.dataclass
class Setting:
    """One row of docs/settings.md."""

    key: str
    values: str
    default: str
    meaning: str


def settings_page() -> str:
    """docs/settings.md: every setting with its key, its values, its default and its docstring."""
    defaults = OmegaConf.to_container(compose.compose_settings("config", []), resolve=False)
    groups: dict[str, list[Setting]] = {"": []}
    for setting in settings_of(GraceConfig, "", defaults):
        group = setting.key.partition(".")[0] if "." in setting.key else ""
        groups.setdefault(group, []).append(setting)
    lines = [
        "# Settings",
        WRITTEN_BY.format("the schemas in `src/grace_exp/config/` and the defaults in `conf/`"),
        "Set a value on the command line (`rollout.group_size=4`) or in a file of `conf/`. A default is that of "
        "`conf/` without an experiment; `${...}` is computed from other settings. `<name>` is a name of your "
        "choice, `[]` an entry of a list. `python -m grace_exp +experiment=demo --cfg job` prints the values of a "
        "run. A value that is not allowed, or that contradicts another, is refused before the run starts.",
    ]
    for group, rows in groups.items():
        lines += [f"## {group or 'Of the run'}", table(("key", "values", "default", "meaning"), map(row_of, rows))]
    lines += [
        "## Who needs what no run here changes",
        "No experiment, study, example or test of this repository sets these.",
        table(("key", "for"), [(f"`{key}`", reason) for key, reason in UNCHANGED.items()]),
    ]
    return "\n\n".join(lines) + "\n"


def row_of(setting: Setting) -> tuple[str, ...]:
    """Return the cells of a setting."""
    return (f"`{setting.key}`", setting.values, f"`{setting.default}`", setting.meaning)


def settings_of(schema: type, prefix: str, defaults: Any) -> Iterator[Setting]:
    """Return the settings of a schema and of the schemas in it, in their order.

    Args:
        schema: A dataclass.
        prefix: Prefix of the keys, with the dot.
        defaults: Values that conf/ sets.
    """
    meanings = field_docstrings(schema)
    for field in dataclasses.fields(schema):
        key, hint = prefix + field.name, get_type_hints(schema, include_extras=True)[field.name]
        default = defaults.get(field.name, MISSING) if isinstance(defaults, dict) else MISSING
        inner = [(suffix, one) for suffix, one in schemas_in(hint)]
        if not inner or accepts_null(hint) or inner[0][0]:
            shown = default if default is not MISSING else schema_default(field)
            values = "see the keys below, or null" if inner and accepts_null(hint) else allowed_values(hint, inner)
            yield Setting(key, values, as_text(shown, inner), meanings.get(field.name, ""))
        for suffix, one in inner:
            yield from settings_of(one, f"{key}{suffix}.", MISSING if suffix else default)


def allowed_values(hint: Any, inner: list[tuple[str, type]]) -> str:
    """Return the values of a setting in words. For a mapping or list of schemas, this says that the keys follow."""
    if not inner:
        return allowed(hint)
    return "a mapping from names" if inner[0][0] == ".<name>" else "a list"


def schemas_in(hint: Any) -> list[tuple[str, type]]:
    """Return the schemas that a type holds, each with the text between its key and theirs."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [("", hint)]
    suffix = {dict: ".<name>", list: "[]", tuple: "[]"}.get(get_origin(hint), "")
    found = [(suffix + deeper, schema) for one in get_args(hint) for deeper, schema in schemas_in(one)]
    return list(dict.fromkeys(found))


def accepts_null(hint: Any) -> bool:
    """Return whether null is a value of the type."""
    return type(None) in get_args(hint)


def schema_default(field: dataclasses.Field) -> Any:
    """Return the schema's default, which counts if conf/ sets none."""
    default = field.default
    default = getattr(default, "default", default) if hasattr(default, "default_factory") else default
    if default is not dataclasses.MISSING and repr(default) != "PydanticUndefined":
        return default
    factory = getattr(field.default, "default_factory", None) or field.default_factory
    return factory() if callable(factory) else MISSING


def as_text(value: Any, inner: list[tuple[str, type]]) -> str:
    """Return a default as it is written on the command line."""
    if value is MISSING or value == "???":
        return REQUIRED
    if inner and isinstance(value, dict | list):
        return "set below" if value else json.dumps(value)
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def field_docstrings(schema: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass: the string right below the field."""
    found: dict[str, str] = {}
    for one in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        body = ast.parse(inspect.getsource(one).strip()).body[0].body
        for node, after in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[node.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def reference_page() -> str:
    """docs/reference.md: tables of terms, of algorithms, and of every choice of every group."""
    lines = [
        "# Terms, objectives and choices",
        WRITTEN_BY.format("docstrings in `src/grace_exp/` and comments in `conf/`"),
        "## Reward terms",
        "Formulas, ranges and what acts on the advantage: [Reward terms](rewards.md). Settings: "
        "`reward.terms.<term>.*` in [Settings](settings.md#reward).",
        table(("term", "what it is", "sources", "file"), [term_row(name, term) for name, term in TERMS.items()]),
        "## Objectives",
        "Formulas: [Objectives](objectives.md). `objective=<choice>` chooses a preset, which sets the algorithm.",
        table(("algorithm", "what it is", "sources", "file"), [algorithm_row(name) for name in ALGORITHMS]),
        "## Choices of every group",
        "`group=choice` on the command line; `+experiment`, `+debug` and `+sweep` with a plus. "
        "`+experiment=<backbone>_<row>`, as in `+experiment=qwen25_3b_sup`, is a row of the paper with a backbone.",
    ]
    for folder in sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        choices = [(f"`{path.stem}`", first_comment(path)) for path in sorted(folder.glob("*.yaml"))]
        lines += [f"### {folder.name}", table(("choice", "what it is"), choices)]
    return "\n\n".join(lines) + "\n"


def term_row(name: str, term: Any) -> tuple[str, ...]:
    """Return the cells of a reward term: name, first sentence of its docstring, sources and file."""
    module = inspect.getmodule(term)
    return f"`{name}`", summary(term.__doc__), sources(inspect.getsource(module)), file_of(module)


def algorithm_row(name: str) -> tuple[str, ...]:
    """Return the cells of an algorithm, from its module's docstring."""
    file = {"custom": "own_objective", "reinforce_pp_baseline": "reinforce_pp"}.get(name, name)
    module = importlib.import_module(f"grace_exp.objective.{file}")
    return f"`{name}`", summary(module.__doc__), sources(module.__doc__), file_of(module)


def summary(docstring: str) -> str:
    """Return the first paragraph in one line."""
    return " ".join(docstring.strip().split("\n\n")[0].split())


def sources(text: str) -> str:
    """Return the arXiv numbers in a text."""
    return ", ".join(f"arXiv {number}" for number in dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", text)))


def file_of(module: Any) -> str:
    """Return the module's file, as a path from `grace_exp/` on."""
    return f"`{Path(module.__file__).relative_to(ROOT / 'src')}`"


def first_comment(path: Path) -> str:
    """Return the first comment of a file of conf/, without commands and Hydra's directive."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or line.startswith("#   "):
            break
        words.append(line.removeprefix("#").strip())
    return " ".join(words)


def table(head: tuple[str, ...], rows: Any) -> str:
    """Return a Markdown table; bars and angle brackets in cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])


def cell(text: str) -> str:
    """Return a cell's text, in which `<`, `*` and `_` outside of code are escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    plain = [part if part.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", part) for part in parts]
    return "".join(plain).replace("|", "\\|")


PAGES = {"settings.md": settings_page, "reference.md": reference_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
