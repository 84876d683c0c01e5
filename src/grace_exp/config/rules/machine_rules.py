"""The machine, and what a step may keep in memory."""

from grace_exp.config.groups import Groups
from grace_exp.config.kept_forward import kept_forward_problems
from grace_exp.config.require import Require


def machine_rules(config: Groups, require: Require) -> None:
    """Check that strategy and precision fit the devices, and that keep_forward has the update it needs."""
    hardware = config.hardware
    require(
        config.processes == 1 or hardware.strategy != "auto",
        f"hardware.strategy='auto' is for one process, but hardware.devices x hardware.nodes = {config.processes}: "
        "set hardware.strategy=ddp, or fsdp2 where the model does not fit",
    )
    if hardware.strategy == "fsdp2":
        _sharding_rules(config, require)
    require(
        hardware.accelerator != "cpu" or hardware.precision == "32-true",
        f"hardware.precision={hardware.precision!r} with hardware.accelerator='cpu': CPUs train in '32-true' "
        "(bf16 is slower there)",
    )
    flex = hardware.packing and hardware.packed_attention == "flex"
    require(
        not flex or hardware.accelerator == "gpu" or config.job.name != "train",
        "hardware.packed_attention='flex' with hardware.accelerator='cpu': FlexAttention trains on GPUs only; set "
        "hardware.packed_attention=mask",
    )
    require(
        not flex or not hardware.share_head,
        "hardware.packed_attention='flex' with hardware.share_head=true, which attends to a cache: set "
        "hardware.share_head=false",
    )
    require(
        not flex or config.backbone.attention == "sdpa",
        f"hardware.packed_attention='flex' with backbone.attention={config.backbone.attention!r}: set "
        "backbone.attention=sdpa, or hardware.packed_attention=mask",
    )
    require(
        not hardware.compile or config.rollout.engine != "transformers" or config.method.prompt_only,
        "hardware.compile=true with rollout.engine='transformers': the layers would be compiled for every length that "
        "is decoded; set rollout=vllm, or hardware.compile=false",
    )
    require(
        hardware.one_pass is not True or config.rollout.engine != "vllm_server",
        "hardware.one_pass=true with rollout.engine='vllm_server', which does not pool hidden states: "
        "set rollout=transformers or rollout=vllm, or hardware.one_pass=auto",
    )
    if hardware.keep_forward is True:
        for problem in kept_forward_problems(config):
            require(False, problem)


def _sharding_rules(config: Groups, require: Require) -> None:
    """Check that sharded processes run the same forwards in the same order, and only through the policy."""
    hardware, rollout = config.hardware, config.rollout
    key = "hardware.strategy='fsdp2'"
    require(
        config.job.name in ("train", "plan"),
        f"{key} with job={config.job.name}: weights are shared out in training only; set hardware.strategy=ddp",
    )
    require(
        not (hardware.packing and hardware.packed_attention == "flex"),
        f"{key} with hardware.packed_attention='flex': its check at first use is a forward that other processes do not "
        "run; set hardware.packing=false, or hardware.packed_attention=mask",
    )
    require(
        not hardware.compile,
        f"{key} with hardware.compile=true: compiled layers have not been tried with gathered weights; set "
        "hardware.compile=false",
    )
    require(
        hardware.one_pass is not True,
        f"{key} with hardware.one_pass=true: its check at first use may lead one process alone back to the forward; "
        "set hardware.one_pass=auto",
    )
    require(
        rollout.engine == "transformers" or not rollout.vllm.probe,
        f"{key} with rollout.vllm.probe=true: the probe computes with a whole model; set rollout.vllm.probe=false",
    )
