"""Time, memory and exact counts of job=prepare_data on a generated file of 1.5M triplets.

    python benchmarks/prepare_data.py                      # 1,500,000 triplets, some 7 minutes of CPU time
    python benchmarks/prepare_data.py --triplets 20000     # a minute

The file holds ten kinds of broken lines, 3 % duplicates (half of them in other case and punctuation) and 1 % triplets
with a text of the evaluation (STS-B dev). Every count of the report is compared with what was put in. The second start
reads from the cache. The script prints a table and writes benchmarks/results/prepare_data.json.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grace_exp.config.evaluation import EvaluationSetConfig
from grace_exp.evaluation.heldout_sets import load_set

RESULTS = Path(__file__).parent / "results" / "prepare_data.json"

BROKEN = {
    "broken JSON (Unterminated string starting at, column ...)": b'{"query": "a text that never ends\n',
    "broken JSON (Expecting ... delimiter, column ...)": b'{"query": "a" "positive": "b"}\n',
    "broken JSON (Extra data, column ...)": b'{"query": "a", "positive": "b", "negative": "c"} tail\n',
    "broken JSON (the line is blank)": b"\n",
    "found a list": b'["a", "b", "c"]\n',
    "field 'negative' is missing": b'{"query": "a", "positive": "b"}\n',
    "field 'positive' is null": b'{"query": "a", "positive": null, "negative": "c"}\n',
    "field 'query' is the number ...": b'{"query": 17, "positive": "b", "negative": "c"}\n',
    "field 'positive' is empty": b'{"query": "a", "positive": "", "negative": "c"}\n',
    "byte ... at character ... is not UTF-...": b'{"query": "a\xff", "positive": "b", "negative": "c"}\n',
}
"""Reasons as the report names them, and a line for each."""


def make_file(path: Path, triplets: int, held_out: list[str]) -> dict[str, Any]:
    """Write the file and return the counts that the report must have."""
    draws = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draws.choices(letters, k=draws.randint(3, 9))) for _ in range(20_000)]
    expected = {"rejected": dict.fromkeys(BROKEN, 0), "exact": 0, "normalized": 0, "leaks": 0, "usable": 0}
    earlier: list[tuple[str, str, str]] = []
    with path.open("wb") as file:
        for number in range(triplets):
            if number % 100 == 99:
                reason = list(BROKEN)[number // 100 % len(BROKEN)]
                file.write(BROKEN[reason])
                expected["rejected"][reason] += 1
            kind = number % 200
            if kind in (50, 51, 52) and len(earlier) > 100:  # 1.5 %
                row = earlier[number % len(earlier)]
                expected["exact"] += 1
            elif kind in (150, 151, 152) and len(earlier) > 100:
                row = tuple(f"  {text.upper()}!" for text in earlier[number % len(earlier)])  # type: ignore[assignment]
                expected["normalized"] += 1
            else:
                row = tuple(" ".join(draws.choices(words, k=k)) for k in (8, 30, 30))  # type: ignore[assignment]
                if kind in (7, 107):
                    row = (held_out[number % len(held_out)], row[1], row[2])
                    expected["leaks"] += 1
                elif len(earlier) < 100_000:
                    earlier.append(row)
            expected["usable"] += 1
            file.write(json.dumps(dict(zip(("query", "positive", "negative"), row, strict=True))).encode() + b"\n")
    return expected


def prepare(file: Path, folder: Path, run: str) -> tuple[float, float, float]:
    """Run the job; returns seconds, seconds of CPU, and the peak memory of a process so far in GiB."""
    overrides = ["data=triplets", f"data.sources.file.path={file}", "data.on_bad_row=reject", "evaluation=demo"]
    overrides += [
        "backbone=smollm2",
        "hardware=cpu",
        "rollout=transformers",
        "job=prepare_data",
        f"cache_dir={folder / 'cache'}",
    ]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "grace_exp", *overrides, f"hydra.run.dir={folder / run}"],
        env=os.environ | {"TOKENIZERS_PARALLELISM": "true"},
        check=False,
    )
    if done.returncode:
        sys.exit(f"job=prepare_data failed with {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu, after.ru_maxrss / (1 << 20)


def main() -> None:
    """Make the file, run the job twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", type=int, default=1_500_000)
    size = parser.parse_args().triplets
    chosen = load_set("stsb", EvaluationSetConfig(kind="sts", source="stsb", split="dev", size=120))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = make_file(folder / "made.jsonl", size, chosen.first)
        gib = (folder / "made.jsonl").stat().st_size / (1 << 30)
        first, first_cpu, _ = prepare(folder / "made.jsonl", folder, "first")
        second, second_cpu, memory = prepare(folder / "made.jsonl", folder, "second")
        report = json.loads((folder / "second" / "data_report.json").read_text(encoding="utf-8"))
    source = report["sources"]["file"]
    counted = {
        "rejected": report["rejected_by_reason"],
        "usable": source["usable"],
        "duplicates": source["standard_would_drop"].get("duplicate", 0),
        "leaks": source["leaks"]["exact"],
    }
    wanted = {
        "rejected": {reason: count for reason, count in expected["rejected"].items() if count},
        "usable": expected["usable"],
        "duplicates": expected["exact"] + expected["normalized"],
        "leaks": expected["leaks"],
    }
    result = {
        "triplets": size,
        "file_gib": gib,
        "seconds_first": first,
        "cpu_seconds_first": first_cpu,
        "seconds_second": second,
        "cpu_seconds_second": second_cpu,
        "peak_memory_gib": memory,
        "counts_exact": counted == wanted,
        "counted": counted,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result, indent=1))
    if counted != wanted:
        sys.exit(f"the report counts differ; wanted {json.dumps(wanted, indent=1)}")


if __name__ == "__main__":
    main()
