"""The benchmark as a library: layers, timing side by side, and the report of a run.

``python -m jaxconv bench`` is its command line.
"""

from jaxconv.bench.machine import Machine as Machine
from jaxconv.bench.machine import probe as probe
from jaxconv.bench.regret import Choice as Choice
from jaxconv.bench.regret import choose as choose
from jaxconv.bench.rows import ROLES as ROLES
from jaxconv.bench.rows import Row as Row
from jaxconv.bench.rows import measure as measure
from jaxconv.bench.sweep import random_layer as random_layer
from jaxconv.bench.timing import Timing as Timing
from jaxconv.bench.timing import compare as compare
from jaxconv.bench.zoo import SUITES as SUITES
from jaxconv.bench.zoo import ZOO as ZOO
from jaxconv.bench.zoo import layer as layer
