"""What the planner knows of the processor that a program for the CPU will run on."""

import enum
import functools


class Processor(enum.Enum):
    """Kinds of processors on which costs were measured.

    Those of one kind have vectors of the same width, and caches beyond a core's own of
    about the same speed, on which it depends which of two routines is the faster.
    """

    NARROW = "vectors of 256 bits: an AMD EPYC of the third generation"
    WIDE = "vectors of 512 bits: an Intel Xeon"
    WIDE_AMD = "vectors of 512 bits: an AMD EPYC of the fifth generation"


@functools.cache
def this_processor() -> Processor:
    """The kind that this machine's processor is nearest to.

    XLA:CPU's own routines gain most by wide vectors. Where the operating system does
    not list what the processor can do, the narrower ones are assumed.

    Example:
      >>> this_processor() in Processor
      True
    """
    try:
        with open("/proc/cpuinfo") as lines:
            told = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:
        return Processor.NARROW
    entries = {name.strip(): value.split() for name, value in told.items()}
    if "avx512f" not in entries.get("flags", []):
        return Processor.NARROW
    amd = "AuthenticAMD" in entries.get("vendor_id", [])
    return Processor.WIDE_AMD if amd else Processor.WIDE
