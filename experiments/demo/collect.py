"""Write the demo's figures and curves of several seeds, and print its table (Markdown).

python experiments/demo/collect.py runs/demo/<time>_seed0 runs/demo/<time>_seed1 ...

Each folder is a run of `+experiment=demo`. `seeds.csv` gets the held-out figures with 95 % bootstrap intervals over
the items, `curves.csv` the margin of every step, which `scripts/draw_figures.py` draws.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MOMENTS = ("before", "prompt_only_before", "after", "prompt_only_after", "rise", "minilm")


def main() -> None:
    """Read the runs, write both files and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, one per seed")
    figures: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for folder in parser.parse_args().runs:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        for name, moments in summary["heldout"].items():
            for moment in MOMENTS:
                if moment in moments:
                    score = {key: round(value, 1) for key, value in moments[moment].items()}
                    figures.append({"set": name, "embedding": moment, "seed": summary["seed"]} | score)
        with (folder / "metrics.csv").open(encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                curves.append({"seed": summary["seed"], "step": row["step"], "embed/margin": row["embed/margin"]})
    for file, rows in (("seeds.csv", figures), ("curves.csv", curves)):
        with (HERE / file).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.stdout.write("\n".join(table(figures)) + "\n")


def table(figures: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: one row per seed and embedding, the held-out sets side by side."""
    sets = list(dict.fromkeys(row["set"] for row in figures))
    cells = {(row["set"], row["embedding"], row["seed"]): row for row in figures}
    seeds = sorted({row["seed"] for row in figures})
    lines = ["| embedding | " + " | ".join(sets) + " |", "|---" * (1 + len(sets)) + "|"]
    for embedding in MOMENTS:
        for seed in seeds:
            found = [cells.get((name, embedding, seed)) for name in sets]
            if all(found):
                texts = [f"{row['value']} [{row['low']}, {row['high']}]" for row in found if row is not None]
                lines.append(f"| {embedding.replace('_', ' ')}, seed {seed} | " + " | ".join(texts) + " |")
    return lines


if __name__ == "__main__":
    main()
