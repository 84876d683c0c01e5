"""Rollout engines."""

from grace_exp.config.groups import Groups
from grace_exp.config.require import Require
from grace_exp.config.vllm import MAX_LORA_RANK


def engine_rules(config: Groups, require: Require) -> None:
    """Check that vLLM can take the policy's adapters, and that every process finds its engine or server."""
    engine, vllm, lora, processes = config.rollout.engine, config.rollout.vllm, config.backbone.lora, config.processes
    if engine == "transformers":
        return
    if vllm.lora == "adapter":
        require(
            lora is not None,
            "rollout.vllm.lora='adapter', but backbone.lora is null: there is no adapter to send",
        )
        require(
            lora is None or lora.rank <= MAX_LORA_RANK,
            f"rollout.vllm.lora='adapter' with backbone.lora.rank={lora and lora.rank}: vLLM's adapters have rank "
            f"{MAX_LORA_RANK} at most; set rollout.vllm.lora=merged",
        )
    require(
        vllm.max_sequences >= config.rollout.group_size,
        f"rollout.vllm.max_sequences={vllm.max_sequences} is less than rollout.group_size="
        f"{config.rollout.group_size}: the rationales of one text are one request",
    )
    if engine == "vllm":
        require(
            processes % vllm.tensor_parallel == 0,
            f"rollout.vllm.tensor_parallel={vllm.tensor_parallel} does not divide the {processes} processes of "
            "hardware.devices x hardware.nodes: engines in process are shared by whole groups of them",
        )
        in_step = config.job.name in ("train", "plan") or (
            config.job.name == "evaluate" and config.evaluation.benchmark is None
        )
        require(
            vllm.tensor_parallel == 1 or in_step,
            f"rollout.vllm.tensor_parallel={vllm.tensor_parallel} with job={config.job.name}: processes that share an "
            "engine ask it together, but here each has its own number of batches. Set rollout.vllm.tensor_parallel=1, "
            "or start a server and set rollout=vllm_server rollout.vllm.server.url",
        )
    else:
        _server_rules(config, require)


def _server_rules(config: Groups, require: Require) -> None:
    server, processes = config.rollout.vllm.server, config.processes
    if server.url is not None:
        return
    require(
        processes == 1 or server.port is not None,
        f"rollout=vllm_server with {processes} processes: they find the one server by its port; set "
        "rollout.vllm.server.port (or .url, of a server that runs already)",
    )
    if config.hardware.accelerator == "gpu":
        _server_device_rules(config, require)
    require(
        config.hardware.nodes == 1,
        f"rollout=vllm_server with hardware.nodes={config.hardware.nodes}: start the server by itself and set "
        "rollout.vllm.server.url",
    )


def _server_device_rules(config: Groups, require: Require) -> None:
    server, trainer, wanted = config.rollout.vllm.server, config.hardware.devices, config.rollout.vllm.tensor_parallel
    first_free = list(range(trainer, trainer + wanted))
    key = "rollout.vllm.server.devices"
    mend = f"{key}={trainer}" if wanted == 1 else f"'{key}={first_free}'".replace(" ", "")
    require(
        server.devices is not None,
        "rollout=vllm_server on a machine with GPUs: say which are the server's and not the trainer's, e.g. "
        f"{mend} (or rollout.vllm.server.url, of a running server)",
    )
    require(
        all(number >= trainer for number in server.device_numbers),
        f"{key}={server.devices} with hardware.devices={trainer}: the trainer has the first {trainer} of the GPUs that "
        f"the run sees; set {mend}",
    )
    require(
        server.devices is None or len(set(server.device_list)) == wanted == len(server.device_list),
        f"{key}={server.devices} with rollout.vllm.tensor_parallel={wanted}: the server takes {wanted} different "
        f"GPU(s); set {mend}, or another rollout.vllm.tensor_parallel",
    )
