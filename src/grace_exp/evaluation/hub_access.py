"""Check whether data of the Hugging Face hub is available, before a model is loaded."""

from pathlib import Path

_PROBE_SECONDS = 10.0


def is_cached(path: str) -> bool:
    """Whether the hub's cache on this machine holds a part of a data set; loading shows whether it is enough."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())


def hub_problem(path: str) -> str | None:
    """Say why the hub does not answer, as words after its name ("which ..."); None if it does.

    Args:
        path: A data set to ask for.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "which HF_HUB_OFFLINE forbids to ask"
    try:
        HfApi().dataset_info(path, timeout=_PROBE_SECONDS)
    except HfHubHTTPError:
        return None  # the hub answered, though not as wished; loading reports what it means
    except Exception as error:  # any failure on the way: name, route, time-out
        return f"which cannot be reached ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return None
