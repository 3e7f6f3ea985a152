"""What the planner knows of the processor that a program for the CPU will run on."""

import functools

WIDE = 512
"""Bits of the widest vectors of x86 processors with AVX-512."""


@functools.cache
def vector_bits() -> int:
    """Bits of this machine's vectors: 512 with AVX-512, else 256.

    XLA:CPU's own routines gain most by wide vectors. Where the operating system does
    not list what the processor can do, the narrower ones are assumed.

    Example:
      >>> vector_bits() in (256, 512)
      True
    """
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        flags = ""
    return WIDE if "avx512f" in flags.split() else 256
