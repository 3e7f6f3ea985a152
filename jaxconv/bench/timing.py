"""Programs side by side: compiled, then run in turn, round after round.

Noise of the machine only ever adds time, so that the fastest run is the best estimate
of what a program costs, and running in turn lets a slow spell hit all alike. Every
other round is run backwards (A B B A), as a place in the round may be a slow one: the
second of two identical programs was once seen to take 1.8 times as long in all rounds.
One such pair of rounds compiles, each program as if it were the process's first: of
networks that were compiled once, ratios were 0.7 to 1.4 times those of another time.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

CLOSE, LOSS = 1.1, 0.97
"""Speed-ups below the first are measured for longer, below the second for longest."""


SETTLING = 0.05
"""Seconds of a first run that may be what it takes to warm up, and no more."""


class Timing(NamedTuple):
    """What one program was measured to need.

    Attributes:
      fastest: seconds of the fastest run.
      median: seconds of the median run.
      compile: seconds from Python function to executable, of the faster of two times.
      temporary: bytes of temporary memory, by XLA's own account.
    """

    fastest: float
    median: float
    compile: float
    temporary: int


def compare(
    programs: Mapping[str, Callable],
    operands: Sequence[jax.Array],
    *,
    rounds: int = 9,
    seconds: float = 3.0,
    hopeless: float = math.inf,
    judge: Callable[[str, Any], None] | None = None,
) -> dict[str, Timing]:
    """Compile each program twice in turn, then time them in turn.

    JAX's caches are cleared for that (`jax.clear_caches`), so that no program is traced
    in less time because another was before.

    Args:
      programs: functions of the operands, by name; the first is what the others are
        compared with.
      operands: their arguments.
      rounds: runs of each, at least.
      seconds: after how much running a near tie is believed; a program that seems
        slower than the first, after four times as much.
      hopeless: a program whose first run, or the second after a short one, takes more
        than this many times the shortest is not run again.
      judge: is handed the name and the result of each program, once.

    Returns:
      A timing for each.

    Raises:
      ValueError: if there are no rounds, or no programs.

    Example:
      >>> import jax.numpy as jnp
      >>> timings = compare({"a": jnp.sin, "b": jnp.cos}, [jnp.ones(3)], seconds=0)
      >>> timings["a"].fastest <= timings["a"].median
      True
    """
    if rounds < 1 or not programs:
        raise ValueError(
            "compare: rounds and the number of programs must be at least 1, but got "
            f"rounds={rounds} and {len(programs)} programs. Run each once at least."
        )
    names, compiled = list(programs), {}
    compile_times = dict.fromkeys(names, math.inf)
    for name in names + names[::-1]:
        compiled[name], own = _compile(programs[name], operands)
        compile_times[name] = min(compile_times[name], own)
    first_runs = {}
    for name in names:
        # Not counted: it warms up.
        first_runs[name] = _run(compiled[name], operands, name, judge)
        if first_runs[name] < SETTLING and hopeless < math.inf:
            first_runs[name] = _run(compiled[name], operands)
    shortest = min(first_runs.values())
    times: dict[str, list[float]] = {
        name: [] if run <= hopeless * shortest else [run]
        for name, run in first_runs.items()
    }
    running = {name: compiled[name] for name, own in times.items() if not own}
    begin = time.perf_counter()

    def undecided() -> bool:
        first, *others = (min(own) for own in times.values())
        speedup = min((first / other for other in others), default=math.inf)
        patience = 4 * seconds if speedup < LOSS else seconds
        return speedup < CLOSE and time.perf_counter() - begin < patience

    done = 0
    while done < rounds or undecided():
        order = list(running) if done % 2 == 0 else reversed(running)
        for name in order:
            times[name].append(_run(running[name], operands))
        done += 1
    return {
        name: Timing(
            min(own),
            statistics.median(own),
            compile_times[name],
            _temporary(compiled[name]),
        )
        for name, own in times.items()
    }


def _compile(program: Callable, operands: Sequence[jax.Array]) -> tuple[Any, float]:
    """The executable and the seconds that making it took."""
    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(program).lower(*operands).compile()
    return compiled, time.perf_counter() - start


def _run(
    executable: Callable,
    operands: Sequence[jax.Array],
    name: str = "",
    judge: Callable[[str, Any], None] | None = None,
) -> float:
    """Seconds of one run, to the end of it."""
    start = time.perf_counter()
    result = jax.block_until_ready(executable(*operands))
    seconds = time.perf_counter() - start
    if judge is not None:
        judge(name, result)
    return seconds


def _temporary(compiled: Any) -> int:
    """Bytes of temporary memory, 0 where the platform does not tell."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
