"""What the planner knows of the processor that a program for the CPU will run on."""

import enum
import functools

LANES = 16
"""Entries of a vector of 512 bits, in float32, and of two of 256 bits."""


class Processor(enum.Enum):
    """Kinds of processors on which costs were measured.

    Those of one kind have vectors of the same width, and caches beyond a core's own of
    about the same speed, on which it depends which of two routines is the faster. Where
    a measurement is said to be of an AMD EPYC, or of one with AVX-512, and no more, it
    is of the fifth generation; of one without, of the third. All were of two cores.
    """

    NARROW = "vectors of 256 bits: an AMD EPYC of the third generation"
    WIDE = "vectors of 512 bits: an Intel Xeon"
    HALVED = "vectors of 512 bits, half by half: an AMD EPYC of the fourth generation"
    WIDE_AMD = "vectors of 512 bits: an AMD EPYC of the fifth generation"

    @property
    def prefers_blocks(self) -> bool:
        """Whether large arrays are copied faster block by block, by what was measured.

        Lines of the cache that are read in part are gone when the rest is asked for.
        """
        return self in (Processor.NARROW, Processor.HALVED)


ZEN_5 = 26
"""Family from which on AMD's units are as wide as its vectors of 512 bits."""


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
            return kind_of(lines.read())
    except OSError:
        return Processor.NARROW


def kind_of(cpuinfo: str) -> Processor:
    r"""The kind of the processor that Linux describes so.

    Args:
      cpuinfo: lines of names and values with a colon between them, as in /proc/cpuinfo.

    Example:
      >>> family = "vendor_id: AuthenticAMD\nflags: avx2 avx512f\ncpu family: {}"
      >>> [kind_of(family.format(number)).name for number in (25, 26)]
      ['HALVED', 'WIDE_AMD']
    """
    told = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    entries = {name.strip(): value.split() for name, value in told.items()}
    if "avx512f" not in entries.get("flags", []):
        return Processor.NARROW
    if "AuthenticAMD" not in entries.get("vendor_id", []):
        return Processor.WIDE
    family = int(entries.get("cpu family", ["0"])[0])
    return Processor.WIDE_AMD if family >= ZEN_5 else Processor.HALVED
