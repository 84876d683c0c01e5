"""Find hard negatives for pairs: the nearest texts of other rows, by the embeddings of a model."""

from pathlib import Path

from grace_exp.config.root import GraceConfig
from grace_exp.errors import DataError
from grace_exp.jobs.input_pairs import read_pairs
from grace_exp.jobs.run_encoder import opened_encoder
from grace_exp.jobs.terminal import our_console
from grace_exp.tracking.atomic import atomic_path


def mine_negatives(config: GraceConfig) -> dict[str, float]:
    """Read pairs (query, positive) from `job.input` and write triplets, ready for data=triplets, to `job.output`.

    Other columns, such as negatives in the input, are not copied.

    Returns:
        `mine/pairs` and `mine/triplets`.

    Raises:
        DataError: The input does not exist, a row lacks a text, or no negative was found.
        MissingResourceError: The model does not exist.
    """
    import datasets
    from sentence_transformers.util import mine_hard_negatives

    job, mining = config.job, config.job.mine
    assert job.input is not None and job.output is not None  # checked by JobConfig
    queries, positives = read_pairs(config)
    pairs = datasets.Dataset.from_dict({"query": queries, "positive": positives})
    console = our_console()
    with opened_encoder(config) as encoder:
        if job.encode.mode is not None:
            encoder.mode = job.encode.mode
        try:
            mined = mine_hard_negatives(
                pairs,
                encoder.as_sentence_transformer(),
                anchor_column_name="query",
                positive_column_name="positive",
                range_min=mining.range_min,
                range_max=mining.range_max,
                max_score=mining.max_score,
                relative_margin=mining.relative_margin,
                num_negatives=mining.negatives,
                sampling_strategy=mining.sampling,
                output_format="n-tuple",
                batch_size=job.encode.batch_size,
                verbose=False,
            )
        except ValueError as error:
            raise DataError(f"job=mine_negatives: {error}") from error
    names = [name for name in mined.column_names if name.startswith("negative")]
    if not len(mined):
        raise DataError(
            "job=mine_negatives found no negatives: give more pairs, or loosen job.mine.relative_margin=null, "
            "job.mine.range_min=0, job.mine.max_score=null"
        )
    triplets = datasets.Dataset.from_dict(
        {
            "query": list(mined["query"]),
            "positive": list(mined["positive"]),
            "negative": [list(row) for row in zip(*(mined[name] for name in names), strict=True)],
        }
    )
    output = Path(job.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as path:
        if output.suffix == ".parquet":
            triplets.to_parquet(str(path))
        else:
            triplets.to_json(str(path), force_ascii=False)
    console.print(f"{len(triplets)} triplets: {output}", highlight=False, soft_wrap=True, markup=False)
    return {"mine/pairs": float(len(pairs)), "mine/triplets": float(len(triplets))}
