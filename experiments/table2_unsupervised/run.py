"""The paper's unsupervised table for SmolLM2 on this machine.

python experiments/table2_unsupervised/run.py --jobs 2         runs what is missing
python experiments/table2_unsupervised/run.py job.steps=1      a test; its table goes to runs/table2_unsupervised_try
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import UNTRAINED, Table, main, trained

ROWS = (
    *UNTRAINED,
    trained("simcse", "smollm2_simcse", paper="simcse"),
    trained("grace", "smollm2_unsup", paper="grace"),
)

if __name__ == "__main__":
    main(
        Table(
            folder=Path(__file__).parent,
            title="Trained on single sentences",
            rows=ROWS,
            references=("base", "simcse"),
            paper_setting="unsupervised",
        )
    )
