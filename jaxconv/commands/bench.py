"""``python -m jaxconv bench``: stock against jaxconv, layer by layer, side by side."""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxconv.bench import report
from jaxconv.bench.machine import Machine, probe
from jaxconv.bench.peer import Peer, PeerError
from jaxconv.bench.regret import Choice, choose
from jaxconv.bench.rows import ROLES, Row, measure
from jaxconv.bench.sweep import random_layer
from jaxconv.bench.transforms import TRANSFORMED, measure_transformed
from jaxconv.bench.zoo import SUITES
from jaxconv.cases import ConvCase
from jaxconv.commands import INTERRUPTED

WIDTH = 160
"""Columns where the output goes to a file, which wraps no lines."""

PROGRAMS = {
    "models": "whole training steps",  # of `jaxconv.bench.models`, which needs Flax
    "transforms": "layers under vmap, and second derivatives",
}
"""Suites of programs, which have no roles."""


class BenchError(ValueError):
    """Options that do not go together, or a name that is not of the suite."""


class Task(NamedTuple):
    """What is to be measured, and where it is kept.

    Attributes:
      console: of `rich`, where it is told.
      jobs: a layer and a role each, or the name of a program.
      measured: of a job, what the report is made of.
      json: where the rows go, after each; or None.
      asked: the options of the run.
      cases: the layers; none where programs are measured.
    """

    console: Any
    jobs: Sequence
    measured: Callable[[Any], Any]
    json: Path | None
    asked: Mapping[str, Any]
    cases: Sequence[ConvCase] = ()


def run(
    *,
    suite: str,
    only: Sequence[str] | None,
    roles: Sequence[str],
    dtype: str,
    rounds: int,
    json: Path | None,
    plot: Path | None,
    peer: str | None,
    peer_python: str | None,
    sweep: int | None,
    seed: int | None,
    regret: bool,
) -> int:
    """Measure layers, print the table, and write what was asked for.

    Args:
      suite: a key of `jaxconv.bench.zoo.SUITES`, or of `PROGRAMS`.
      only: names of layers, or programs, of the suite, or None for all.
      roles: some of `jaxconv.bench.rows.ROLES`.
      dtype: name of the operands' dtype.
      rounds: runs of each program, at least.
      json: where the rows go as JSON, after each; or None.
      plot: where the picture goes, or None.
      peer: "torch" or None.
      peer_python: interpreter that has torch; None for this one.
      sweep: so many random layers in place of the suite's, or None.
      seed: of the random layers, or None for 0.
      regret: time every algorithm that applies, in place of stock.

    Returns:
      0; 1 where a layer is unknown, options do not go together or torch is missing; 130
      if interrupted.
    """
    from rich.console import Console

    if plot is not None:
        importlib.import_module("matplotlib")  # missing, it is missed before the run
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    roles = tuple(dict.fromkeys(roles))
    asked = {
        "suite": suite,
        "roles": roles,
        "dtype": dtype,
        "rounds": rounds,
        "peer": peer,
        "sweep": sweep,
        "seed": (seed or 0) if sweep is not None else None,
        "regret": regret,
    }
    try:
        _refuse_what_would_be_lost(
            asked, seed, only is not None, peer_python, plot is not None
        )
        if suite in PROGRAMS:
            jobs, measured = _programs(suite, only, rounds)
            return _bench(Task(console, jobs, measured, json, asked), plot)
        cases = _cases(suite, only, sweep, seed or 0)
        wide = dtype == "float64"
        with jax.enable_x64(wide or jax.config.jax_enable_x64):
            jobs = [(case, role) for case in cases for role in roles]
            with _peer(peer, peer_python) as other:

                def chosen(job: tuple[ConvCase, str]) -> Choice:
                    return choose(*job, dtype, rounds=rounds)

                def timed(job: tuple[ConvCase, str]) -> Row:
                    row = measure(*job, dtype, rounds=rounds)
                    if other is not None:
                        row = row._replace(peer=other.seconds(*job, dtype, rounds))
                    return row

                measured = chosen if regret else timed
                task = Task(console, jobs, measured, json, asked, cases)
                return _regret(task) if regret else _bench(task, plot)
    except (BenchError, PeerError) as error:
        print(f"jaxconv: {error}", file=sys.stderr)
        return 1


def _refuse_what_would_be_lost(
    asked: Mapping[str, Any],
    seed: int | None,
    some: bool,
    peer_python: str | None,
    drawn: bool,
) -> None:
    """Raise where an option would have no effect beside the others."""
    suite, peer = asked["suite"], asked["peer"]
    if asked["sweep"] is not None and (some or suite != "zoo"):
        raise BenchError(
            "bench: --sweep measures random layers, which are of no suite. Leave "
            "out --suite and --only."
        )
    if seed is not None and asked["sweep"] is None:
        raise BenchError(
            f"bench: --seed is of random layers, but got --seed {seed} alone. Add "
            "--sweep with their number."
        )
    if peer_python is not None and peer is None:
        raise BenchError(
            f"bench: --peer-python is the interpreter of a peer, but got "
            f"--peer-python {peer_python} alone. Add --peer torch."
        )
    fewer = asked["dtype"] != "float32" or asked["roles"] != ROLES
    if suite in PROGRAMS and (asked["regret"] or peer or fewer):
        raise BenchError(
            f"bench: --suite {suite} measures {PROGRAMS[suite]} in float32. "
            "Leave out --regret, --peer, --dtype and --roles."
        )
    if asked["regret"] and (peer or drawn):
        raise BenchError(
            "bench: --regret compares algorithms with each other, and draws no "
            "picture. Leave out --peer and --plot."
        )


def _cases(
    suite: str, only: Sequence[str] | None, sweep: int | None, seed: int
) -> Sequence[ConvCase]:
    if sweep is not None:
        return [random_layer(seed + i) for i in range(sweep)]
    layers = {case.name: case for case in SUITES[suite]}
    return [layers[name] for name in _chosen(suite, only, layers)]


def _chosen(suite: str, only: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Those of the suite's names that were asked for, or all."""
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise BenchError(
            f"bench: layers must be of suite {suite}, but got --only "
            f"{','.join(unknown)}. Choose from {', '.join(known)}."
        )
    return list(dict.fromkeys(only or known))


def _programs(
    suite: str, only: Sequence[str] | None, rounds: int
) -> tuple[list[str], Callable[[str], Row]]:
    """Names of the suite's programs, and what measures one."""
    if suite == "models":
        from jaxconv.bench.models import MODELS, measure_model

        known, measured = MODELS, measure_model
    else:
        known, measured = TRANSFORMED, measure_transformed
    return _chosen(suite, only, known), functools.partial(measured, rounds=rounds)


def _peer(name: str | None, python: str | None) -> Any:
    return contextlib.nullcontext() if name is None else Peer(python)


def _bench(task: Task, plot: Path | None) -> int:
    """Stock against jaxconv, job by job; of random layers, which gain least."""
    console, probed = task.console, probe(task.asked["dtype"])
    rows, status = _collect(task, report.summary, probed)
    console.print(report.table(probed, rows, brief=console.width < WIDTH))
    if task.asked["sweep"] is not None:
        console.print(report.slowest(task.cases, rows))
    console.print(
        f"This machine: {probed.gemm / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{probed.copy / 1e9:.1f} GB/s in a copy."
    )
    for line in report.lines(report.summary(rows)):
        console.print(line)
    if plot is not None and rows:
        report.plot(plot, probed, rows)
        console.print(f"Picture: {plot}")
    return status


def _regret(task: Task) -> int:
    """Every algorithm that applies against the plan's choice."""
    choices, status = _collect(task, report.regrets, probe(task.asked["dtype"]))
    task.console.print(report.choices_table(choices))
    for line in report.lines(report.regrets(choices)):
        task.console.print(line)
    return status


def _collect(
    task: Task, summary: Callable[[Sequence], Mapping], machine: Machine
) -> tuple[list, int]:
    """What was measured, to an interruption or the peer's end; and the status."""
    from rich.progress import track

    rows: list = []

    def keep() -> None:
        if task.json is not None:
            report.write_json(
                task.json,
                machine,
                rows,
                summary(rows),
                asked=task.asked,
                cases=task.cases,
                complete=len(rows) == len(task.jobs),
            )

    keep()  # no other run's figures stay there
    try:
        for job in track(task.jobs, "measuring", console=task.console, transient=True):
            rows.append(task.measured(job))
            keep()
    except KeyboardInterrupt:
        task.console.print(
            f"[red]Interrupted[/] after {len(rows)} of {len(task.jobs)}."
        )
        return rows, INTERRUPTED
    except PeerError as error:
        print(f"jaxconv: {error}", file=sys.stderr)
        return rows, 1
    return rows, 0
