"""The paper's supervised table for SmolLM2 on this machine.

python experiments/table1_supervised/run.py --jobs 2           everything, or what is missing of it
python experiments/table1_supervised/run.py job.steps=1        a try: its table goes to runs/table1_supervised_try
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import Row, Table, Training, main

ONLY_TRAIN = ("evaluation=none", "callbacks.export=[]", "logger=csv")
# GRACE's runs are those of the study inert_negatives.
GRACE = Training(
    "inert_negatives_inert_negatives",
    ("+experiment=inert_negatives", "+sweep=inert_negatives", "reward=paper_supervised,infonce", "logger=csv"),
)


def baseline(experiment: str) -> Training:
    """A sweep over the seeds of an experiment."""
    return Training(f"{experiment}_seeds", (f"+experiment={experiment}", *ONLY_TRAIN))


def row(method: str, paper: str | None = None) -> Row:
    """A baseline of the experiment of that name."""
    experiment = f"smollm2_{method.replace(' ', '_')}"
    return Row(method, (f"+experiment={experiment}",), baseline(experiment), paper=paper)


ROWS = (
    Row("base", ("+experiment=smollm2_base",), paper="base"),
    Row("reasoning", ("+experiment=smollm2_reasoning",), paper="reasoning"),
    row("contrastive", paper="contrastive"),
    row("contrastive on rationales"),
    row("rejection sft"),
    Row("grace", ("+experiment=inert_negatives", "reward=paper_supervised"), GRACE, "paper_supervised", "grace"),
    Row("grace infonce", ("+experiment=inert_negatives", "reward=infonce"), GRACE, "infonce"),
)

if __name__ == "__main__":
    main(
        Table(
            folder=Path(__file__).parent,
            title="Trained on labelled data",
            rows=ROWS,
            evaluation=("evaluation.max_tokens=16",),  # as in training
            paper_setting="supervised",
        )
    )
