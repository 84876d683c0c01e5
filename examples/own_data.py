"""Train on your own file: a CSV with columns of any name.

python examples/own_data.py runs/own_data

The same from the command line:
  python -m grace_exp +experiment=demo data=triplets data.sources.file.path=questions.csv \
      data.sources.file.query=question data.sources.file.positive=answer data.sources.file.negative=wrong_answer
"""

import csv
import sys
from pathlib import Path

from grace_exp.config.compose import compose_config
from grace_exp.jobs import run

ROWS = [
    ("How do plants eat?", "Leaves turn light into sugar.", "Cows eat grass."),
    ("Why is the sea salty?", "Rivers wash salts off rocks.", "Fish live in the sea."),
    ("What makes bread rise?", "Yeast gives off gas.", "Bread is sold by weight."),
    ("Who wrote Hamlet?", "Shakespeare is its author.", "Hamlets are small villages."),
]


def main(folder: Path, *overrides: str) -> dict[str, float]:
    """Write the file, check it, train on it; return the last step's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "questions.csv"
    with data.open("w", newline="") as stream:
        csv.writer(stream).writerows([("question", "answer", "wrong_answer"), *ROWS])
    settings = [
        "+experiment=demo_tiny",  # a tiny random model; `demo` trains SmolLM2
        "data=triplets",
        f"data.sources.file.path={data}",
        "data.sources.file.query=question",
        "data.sources.file.positive=answer",
        "data.sources.file.negative=wrong_answer",
        *overrides,
    ]
    run(compose_config([*settings, "job=prepare_data"], folder / "check"))
    return run(compose_config(settings, folder / "run"))


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
