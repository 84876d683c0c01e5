"""Turn `conf/` and overrides into a checked `GraceConfig`, and a `GraceConfig` back into YAML."""

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from grace_exp.config.engine_defaults import register_engine_defaults
from grace_exp.config.error_messages import explain
from grace_exp.config.experiments import register_experiments
from grace_exp.config.machine import register_machine
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError

_ADAPTER = TypeAdapter(GraceConfig)
register_experiments()
register_machine()
register_engine_defaults()
OmegaConf.register_new_resolver("file", lambda path: _text_of(str(path)), replace=True)


def conf_dir() -> Path:
    """Return the folder of the YAML files: `grace_exp/conf` in an installed wheel, `conf` in a checkout.

    Raises:
        ConfigError: Neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    folders = [package / "conf", package.parents[1] / "conf"]
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no config.yaml in {folders[0]} or {folders[1]}: reinstall grace-exp")


def validate(settings: DictConfig) -> GraceConfig:
    """Resolves composed settings and checks them against the schemas.

    The check is as strict as JSON: a whole number is accepted for a number, and nothing else is converted ("8" and 8.0
    are not whole numbers).

    Args:
        settings: The settings without Hydra's own node.

    Raises:
        ConfigError: One message with a line for every problem: dotted key, value, what is allowed. Contradictions
            between groups are reported once every setting is valid by itself.
    """
    try:
        as_json = json.dumps(OmegaConf.to_container(settings, resolve=True))
        problems = {key: f"{key}: not given; say {key}=..." for key in sorted(OmegaConf.missing_keys(settings))}
    except OmegaConfBaseException as error:
        raise _config_error({"": f"{error.full_key}: {str(error.msg).splitlines()[0]}"}) from error
    try:
        config = _ADAPTER.validate_json(as_json, strict=True)
    except ValidationError as error:
        raise _config_error(explain(error, json.loads(as_json)) | problems) from None
    if problems:
        raise _config_error(problems)
    return config


def compose_config(overrides: list[str], run_dir: Path) -> GraceConfig:
    """Composes and checks a run's settings without Hydra's command line: for tests, scripts, and a run's report.

    Args:
        overrides: As on the command line, e.g. `["+experiment=demo", "seed=1"]`.
        run_dir: Replaces the run folder that Hydra would create.

    Raises:
        ConfigError: As `validate`.
        hydra.errors.HydraException: An override names a group, choice or key that does not exist.
    """
    settings = compose_settings("config", overrides)
    settings.run_dir = str(run_dir)
    return validate(settings)


def compose_settings(name: str, overrides: list[str]) -> DictConfig:
    """Composes a file of `conf/`; this also works inside a job that Hydra's command line has started.

    Raises:
        hydra.errors.HydraException: There is no such file, or an override names something unknown.
    """
    command_line = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(name, overrides=overrides)
    finally:
        GlobalHydra.instance().hydra = command_line


def to_dict(config: GraceConfig) -> dict[str, Any]:
    """Return the resolved settings as plain data for the tracker; they validate to an equal config."""
    plain: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return plain


def _text_of(path: str) -> str:
    """Return the text of a file: `${file:my_prompt.txt}` in a setting, relative to the working directory."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"${{file:{path}}}: {getattr(error, 'strerror', None) or error} (in {Path.cwd()})") from error
    if not text:
        raise ConfigError(f"${{file:{path}}}: the file is empty")
    return text


def _config_error(problems: dict[str, str]) -> ConfigError:
    lines = [line for text in problems.values() for line in text.splitlines()]
    return ConfigError("\n  ".join(["these settings cannot be used:", *lines]))
