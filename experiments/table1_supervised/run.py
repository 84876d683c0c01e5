"""The paper's supervised table for SmolLM2 on this machine.

python experiments/table1_supervised/run.py --jobs 2           runs what is missing
python experiments/table1_supervised/run.py job.steps=1        a test; its table goes to runs/table1_supervised_try
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import UNTRAINED, Row, Table, Training, main, trained

# GRACE's runs are those of the study inert_negatives.
GRACE = Training(
    "inert_negatives_inert_negatives",
    ("+experiment=inert_negatives", "+sweep=inert_negatives", "reward=paper_supervised,infonce", "logger=csv"),
)
ROWS = (
    *UNTRAINED,
    trained("contrastive", "smollm2_contrastive", paper="contrastive"),
    trained("contrastive on rationales", "smollm2_contrastive_on_rationales"),
    trained("rejection sft", "smollm2_rejection_sft"),
    Row("grace", ("+experiment=inert_negatives", "reward=paper_supervised"), GRACE, "paper_supervised", "grace"),
    Row("grace infonce", ("+experiment=inert_negatives", "reward=infonce"), GRACE, "infonce"),
)

if __name__ == "__main__":
    main(
        Table(
            folder=Path(__file__).parent,
            title="Trained on labelled data",
            rows=ROWS,
            references=("base", "contrastive on rationales"),
            paper_setting="supervised",
        )
    )
