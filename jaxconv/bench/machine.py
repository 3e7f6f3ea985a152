"""What the machine can do: the rates that achieved ones are held against."""

import os
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv import __version__
from jaxconv.bench.timing import compare

_SIDE, _ENTRIES = 1024, 1 << 22


class Machine(NamedTuple):
    """A machine and its rates.

    Attributes:
      description: processor, platform and versions.
      gemm: additions and multiplications per second of a 1024x1024 matrix product.
      copy: bytes read and written per second by adding one to 4 M entries.
    """

    description: str
    gemm: float
    copy: float


def probe(dtype: Any = jnp.float32) -> Machine:
    """Measure this machine.

    Args:
      dtype: of the matrices and the copied array.
    """
    square, line = jnp.ones((_SIDE, _SIDE), dtype), jnp.ones(_ENTRIES, dtype)
    product = compare({"gemm": jnp.matmul}, [square, square])["gemm"]
    copy = compare({"copy": lambda x: x + jnp.ones((), dtype)}, [line])["copy"]
    device = jax.devices()[0]
    return Machine(
        f"{_processor()}, {device.device_kind if device.platform != 'cpu' else 'CPU'}, "
        f"Python {platform.python_version()}, jax {jax.__version__}, "
        f"jaxconv {__version__}",
        2 * _SIDE**3 / product.fastest,
        2 * line.nbytes / copy.fastest,
    )


def _processor() -> str:
    """Name of the processor and number of cores that may be used."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            models = [line for line in lines if line.startswith("model name")]
        name = models[0].partition(":")[2].strip()
    except (OSError, IndexError):
        pass
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # of Linux alone
        cores = os.cpu_count()
    return f"{cores} cores of {name}"
