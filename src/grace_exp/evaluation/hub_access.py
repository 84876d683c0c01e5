"""Whether data of the Hugging Face hub can be had here, asked before a model is loaded."""

from pathlib import Path

_PROBE_SECONDS = 10.0


def is_cached(path: str) -> bool:
    """Whether the hub's cache on this machine holds something of a data set; what exactly, loading will tell."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())


def hub_problem(path: str) -> str | None:
    """Why the hub does not answer, to stand behind its name ("which ..."); None where it does.

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
        return None  # an answer, if not the wished one; loading says what it means
    except Exception as error:  # whatever kept the answer away: no name, no route, no time
        return f"which cannot be reached ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return None
