"""Measure a model on the held-out sets: the untrained backbone, or a run's policy."""

from contextlib import closing
from pathlib import Path

import torch

from grace_exp.config.compose import to_dict
from grace_exp.config.root import GraceConfig
from grace_exp.evaluation.heldout import evaluate_minilm
from grace_exp.evaluation.scores import score
from grace_exp.jobs.assemble import assemble
from grace_exp.jobs.terminal import our_console
from grace_exp.tracking.provenance import write_provenance
from grace_exp.training.heldout import heldout_results, write_results
from grace_exp.training.report import heldout_table
from grace_exp.training.resume import check_same_model, find_checkpoint, load_checkpoint


def evaluate(config: GraceConfig) -> dict[str, float]:
    """Print the held-out figures and write them to `<run_dir>/evaluation/now.json`.

    Args:
        config: With `job.resume` the weights come from that checkpoint or run folder; without, the backbone is measured
            as it is.

    Returns:
        `val/<set>/{rationale,prompt_only}`.

    Raises:
        MissingResourceError: `job.resume` names no checkpoint.
        ConfigError: The checkpoint is of another model.
    """
    console = our_console()
    run_dir = Path(config.run_dir)
    write_provenance(run_dir, to_dict(config), {})
    assembled = assemble(config, lambda step, rows: None)
    module = assembled.module
    if config.job.resume is not None:
        path = find_checkpoint(config.job.resume)
        checkpoint = load_checkpoint(path)
        check_same_model(checkpoint["grace"]["config"], config)
        module.load_state_dict(checkpoint["state_dict"])
        console.print(f"weights of {path}", highlight=False, soft_wrap=True)
    device = torch.device("cuda" if config.hardware.accelerator == "gpu" else "cpu")
    module.to(device)
    bf16 = config.hardware.precision == "bf16-mixed"
    with closing(module.engine), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        results = heldout_results(config, module, assembled.decode)
    write_results(run_dir / "evaluation" / "now.json", results)
    minilm = evaluate_minilm(config.evaluation) if config.evaluation.minilm else {}
    resamples = config.evaluation.bootstrap
    rows = {
        name: {
            "rationale": str(score(result.rationale, resamples)),
            "prompt_only": str(score(result.prompt_only, resamples)),
            **({"minilm": str(score(minilm[name], resamples))} if name in minilm else {}),
        }
        for name, result in results.items()
    }
    console.print(heldout_table(config, rows))
    console.print(f"Run folder: {run_dir}", highlight=False, soft_wrap=True)
    return {
        f"val/{name}/{row}": items.figure()
        for name, result in results.items()
        for row, items in (("rationale", result.rationale), ("prompt_only", result.prompt_only))
    }
