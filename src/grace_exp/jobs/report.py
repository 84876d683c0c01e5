"""Write the HTML report of a run, of several runs, or of a sweep."""

from pathlib import Path

from grace_exp.config.root import GraceConfig
from grace_exp.jobs.terminal import our_console
from grace_exp.review.html_report import write_report


def report(config: GraceConfig) -> dict[str, float]:
    """Write `report.html` and `report.json`, and print their paths.

    Args:
        config: `job.run` names the folders. The files go into that folder; for several runs into this job's.

    Returns:
        An empty dict.

    Raises:
        UnreadableRun: None of the folders holds a run or sweep.
    """
    folders = [Path(folder).expanduser() for folder in config.job.run_folders]
    console = our_console()
    page, skipped = write_report(folders, folders[0] if len(folders) == 1 else Path(config.run_dir))
    for line in skipped:
        console.print(f"left out: {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report: {page}", highlight=False, markup=False, soft_wrap=True)
    return {}
