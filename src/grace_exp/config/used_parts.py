"""Which of the user's own functions a run calls."""

from collections.abc import Iterator

from grace_exp.config.groups import Groups
from grace_exp.config.own_parts import OwnFunction, OwnPart


def own_parts(config: Groups) -> Iterator[OwnPart]:
    """Yield the user's own functions that a training run with these settings calls."""
    term, objective = config.reward.terms.custom, config.objective.custom
    if term is not None:
        yield OwnPart("reward.terms.custom", term.path, term.name, ("inputs",))
    if objective is not None:
        for name, arguments in ((objective.advantages, ("inputs", "config")), (objective.loss, ("inputs", "config"))):
            if name is not None:
                yield OwnPart("objective.custom", objective.path, name, arguments)
    for source_name, source in config.data.sources.items():
        if source.reader is not None:
            yield reader_part(source_name, source.reader)


def reader_part(source_name: str, reader: OwnFunction) -> OwnPart:
    """Return the reader of a data source."""
    return OwnPart(f"data.sources.{source_name}.reader", reader.path, reader.name, ("path",))
