"""The jobs, by name; each is imported only when it runs."""

from collections.abc import Callable

from grace_exp.config.machine import this_machine
from grace_exp.config.root import GraceConfig
from grace_exp.late_imports import imports_are_done


def run(config: GraceConfig) -> dict[str, float]:
    """Run the job that the settings name.

    Args:
        config: Checked settings; `config.job.name` chooses.

    Returns:
        The job's results by metric name; a sweep may optimise one of them.

    Raises:
        GraceError: A problem that the user can mend, from anywhere in the job.
    """
    from grace_exp.jobs.terminal import our_console, quiet_libraries
    from grace_exp.parent_death import end_with_launcher

    end_with_launcher()
    quiet_libraries()
    if config.hardware.name == "auto":
        our_console().print(this_machine().description, highlight=False, markup=False, soft_wrap=True)
    job = _job(config)
    imports_are_done()
    return job(config)


def _job(config: GraceConfig) -> Callable[[GraceConfig], dict[str, float]]:
    match config.job.name:
        case "train":
            from grace_exp.jobs.train import train

            return train
        case "evaluate":
            from grace_exp.jobs.evaluate import evaluate

            return evaluate
        case "prepare_data":
            from grace_exp.jobs.prepare_data import prepare_data

            return prepare_data
        case "embed":
            from grace_exp.jobs.embed import embed

            return embed
        case "mine_negatives":
            from grace_exp.jobs.mine_negatives import mine_negatives

            return mine_negatives
        case "fit_adaptive":
            from grace_exp.jobs.fit_adaptive import fit_adaptive

            return fit_adaptive
        case "fit_center":
            from grace_exp.jobs.fit_center import fit_center

            return fit_center
        case "distill":
            from grace_exp.jobs.distill import distill

            return distill
        case "serve":
            from grace_exp.jobs.serve import serve

            return serve
        case "explain":
            from grace_exp.jobs.explain import explain

            return explain
        case "plan":
            from grace_exp.jobs.plan import plan

            return plan
        case "report":
            from grace_exp.jobs.report import report

            return report
        case "dashboard":
            from grace_exp.jobs.dashboard import dashboard

            return dashboard
        case "clear_cache":
            from grace_exp.jobs.clear_cache import clear_cache

            return clear_cache
