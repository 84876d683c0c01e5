"""The paper's unsupervised table for SmolLM2 on this machine.

python experiments/table2_unsupervised/run.py --jobs 2         everything, or what is missing of it
python experiments/table2_unsupervised/run.py job.steps=1      a try: its table goes to runs/table2_unsupervised_try
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import Row, Table, Training, main

ONLY_TRAIN = ("evaluation=none", "callbacks.export=[]", "logger=csv")


def row(method: str, experiment: str) -> Row:
    """A method and the sweep of its experiment."""
    training = Training(f"{experiment}_seeds", (f"+experiment={experiment}", *ONLY_TRAIN))
    return Row(method, (f"+experiment={experiment}",), training, paper=method)


ROWS = (
    Row("base", ("+experiment=smollm2_base",), paper="base"),
    Row("reasoning", ("+experiment=smollm2_reasoning",), paper="reasoning"),
    row("simcse", "smollm2_simcse"),
    row("grace", "smollm2_unsup"),
)

if __name__ == "__main__":
    main(
        Table(
            folder=Path(__file__).parent,
            title="Trained on single sentences",
            rows=ROWS,
            evaluation=("evaluation.max_tokens=16",),  # as in training
            paper_setting="unsupervised",
        )
    )
