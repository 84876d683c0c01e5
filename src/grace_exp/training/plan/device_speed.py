"""Peak speeds of devices, from their makers' data sheets."""

from dataclasses import dataclass

from grace_exp.config.hardware import HardwareConfig


@dataclass(frozen=True, slots=True)
class Speed:
    """Peak speeds of one device.

    Attributes:
        name: Name of the device.
        tflops: Dense bf16 matrix products with float32 sums, TFLOP/s.
        bandwidth: Memory bandwidth, GB/s.
    """

    name: str
    tflops: float
    bandwidth: float


# The name that CUDA reports is searched for these, in this order.
KNOWN = (
    Speed("B200", 2250, 8000),
    Speed("H200", 989, 4800),
    Speed("H100 PCIe", 756, 2000),
    Speed("H100", 989, 3350),
    Speed("A100-SXM4-40GB", 312, 1555),
    Speed("A100", 312, 2039),
    Speed("L40S", 362, 864),
    Speed("RTX 6000 Ada", 364, 960),
    Speed("A6000", 155, 768),
    Speed("RTX 5090", 209, 1792),
    Speed("RTX 4090", 165, 1008),
    Speed("RTX 3090", 71, 936),
    Speed("A10", 125, 600),
    Speed("L4", 121, 300),
)
# GPUs that a plan assumes if only the memory is known: at least so many GiB.
_BY_MEMORY = ((130, "H200"), (70, "H100"), (40, "L40S"), (0, "RTX 4090"))


def device_speed(hardware: HardwareConfig, memory_gib: float, name: str | None = None) -> Speed | None:
    """Return the peak speeds of the run's devices.

    Args:
        hardware: Settings; `peak_tflops` and `memory_bandwidth` take precedence.
        memory_gib: Memory of one device; without a name a usual GPU of that memory is assumed.
        name: The device's name as CUDA reports it; None: the device is not in this machine.

    Returns:
        None if unknown: CPUs, and GPUs that are not on the list.
    """
    found = None
    if name is not None:
        found = next((speed for speed in KNOWN if speed.name in name), None)
    elif hardware.accelerator == "gpu":
        usual = next(kind for least, kind in _BY_MEMORY if memory_gib >= least)
        found = next(speed for speed in KNOWN if speed.name == usual)
    tflops = hardware.peak_tflops or (found.tflops if found else None)
    bandwidth = hardware.memory_bandwidth or (found.bandwidth if found else None)
    if tflops is None or bandwidth is None:
        return None
    return Speed(found.name if found else name or "configured", tflops, bandwidth)
