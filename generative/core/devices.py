"""What devices can do: peak arithmetic and memory, from their makers' data sheets, or as measured here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from generative.core.errors import UserError
from generative.core.runtime import Precision

GIB = 2**30
HERE = "here"
PROBE_SIZE = 1024
PROBE_SECONDS = 0.3


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        title: What it is called.
        half_flops: Peak operations per second in bfloat16 and float16 with float32 sums, without sparsity.
        float_flops: Peak in float32 as torch computes by default (no TF32 in matrix products).
        memory: Bytes.
        source: Where the figures are from.
    """

    title: str
    half_flops: float
    float_flops: float
    memory: float
    source: str

    def peak(self, precision: Precision) -> float:
        """Operations per second at a precision of training."""
        return self.float_flops if precision == "no" else self.half_flops


DEVICES = {
    "b200": Device("NVIDIA B200 (HGX)", 2.25e15, 75e12, 180e9, "NVIDIA HGX B200 data sheet, a GPU of eight"),
    "h200": Device("NVIDIA H200 SXM", 989e12, 67e12, 141e9, "NVIDIA H200 data sheet"),
    "h100": Device("NVIDIA H100 SXM", 989e12, 67e12, 80e9, "NVIDIA H100 data sheet"),
    "h100-pcie": Device("NVIDIA H100 PCIe", 756e12, 51e12, 80e9, "NVIDIA H100 data sheet"),
    "a100": Device("NVIDIA A100 SXM 80 GB", 312e12, 19.5e12, 80e9, "NVIDIA A100 data sheet"),
    "a100-40gb": Device("NVIDIA A100 SXM 40 GB", 312e12, 19.5e12, 40e9, "NVIDIA A100 data sheet"),
    "l40s": Device("NVIDIA L40S", 362e12, 91.6e12, 48e9, "NVIDIA L40S data sheet"),
    "a6000": Device("NVIDIA RTX A6000", 154.8e12, 38.7e12, 48e9, "NVIDIA Ampere GA102 white paper"),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12, 24e9, "NVIDIA Ada white paper, float32 sums"),
    "rtx3090": Device("NVIDIA GeForce RTX 3090", 71e12, 35.6e12, 24e9, "NVIDIA Ampere GA102 white paper, float32 sums"),
    "v100": Device("NVIDIA V100 SXM 32 GB", 125e12, 15.7e12, 32e9, "NVIDIA V100 data sheet; float16 only"),
    "t4": Device("NVIDIA T4", 65e12, 8.1e12, 16e9, "NVIDIA T4 data sheet; float16 only"),
}
# Parts of what the driver calls a device -> its name here; the first that fits.
_DRIVER_NAMES = (
    ("B200", "b200"),
    ("H200", "h200"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100"),
    ("A100-SXM4-40GB", "a100-40gb"),
    ("A100-PCIE-40GB", "a100-40gb"),
    ("A100", "a100"),
    ("L40S", "l40s"),
    ("RTX A6000", "a6000"),
    ("RTX 4090", "rtx4090"),
    ("RTX 3090", "rtx3090"),
    ("V100", "v100"),
    ("T4", "t4"),
)


def named_device(name: str) -> Device:
    """A device by its name in ``DEVICES``, or ``here``: this machine's, whose peak is measured.

    Raises:
        UserError: If there is none of that name.
    """
    if name == HERE:
        return measured_device()
    if name.lower() not in DEVICES:
        raise UserError(
            f"there are no figures of a device '{name}'; there are {', '.join(DEVICES)}, and '{HERE}' measures this one"
        )
    return DEVICES[name.lower()]


def known_device(device: torch.device) -> Device | None:
    """The figures of a CUDA device that this process computes on, by its driver's name; None if there are none."""
    if device.type != "cuda":
        return None
    driver = torch.cuda.get_device_name(device)
    found = next((name for part, name in _DRIVER_NAMES if part.lower() in driver.lower()), None)
    return None if found is None else DEVICES[found]


def measured_device() -> Device:
    """This machine's first GPU, or its processor: the peak is that of a product of matrices in either precision, measured now."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        title, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        device = torch.device("cpu")
        title = f"this processor ({torch.get_num_threads()} threads)"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half, single = (measure_peak(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    return Device(title, half, single, float(memory), "measured now, products of matrices")


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of products of square matrices: the fastest of some, as a peak is meant."""
    size = PROBE_SIZE * (8 if device.type == "cuda" else 1)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def seconds() -> float:
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    seconds()
    times = [seconds()]
    while sum(times) < PROBE_SECONDS:
        times.append(seconds())
    return 2.0 * size**3 / min(times)
