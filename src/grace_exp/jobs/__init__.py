"""The jobs, by name; each is imported only when it runs."""

from grace_exp.config.root import GraceConfig


def run(config: GraceConfig) -> dict[str, float] | float | None:
    """Runs the job that the configuration names.

    Args:
        config: Checked settings; `config.job.name` chooses.

    Returns:
        What the job returns: its figures, or the one figure that a sweep optimises.

    Raises:
        GraceError: What the user can mend, from anywhere in the job.
    """
    from grace_exp.jobs.terminal import quiet_libraries

    quiet_libraries()
    match config.job.name:
        case "train":
            from grace_exp.jobs.train import train

            return train(config)
        case "evaluate":
            from grace_exp.jobs.evaluate import evaluate

            return evaluate(config)
        case "prepare_data":
            from grace_exp.jobs.prepare_data import prepare_data

            return prepare_data(config)
