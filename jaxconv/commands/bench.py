"""``python -m jaxconv bench``: stock against jaxconv, layer by layer, side by side."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        if sweep is not None and (only or suite != "zoo"):
            raise BenchError(
                "bench: --sweep measures random layers, which are of no suite. Leave "
                "out --suite and --only."
            )
        if seed is not None and sweep is None:
            raise BenchError(
                f"bench: --seed is of random layers, but got --seed {seed} alone. Add "
                "--sweep with their number."
            )
        if peer_python is not None and peer is None:
            raise BenchError(
                f"bench: --peer-python is the interpreter of a peer, but got "
                f"--peer-python {peer_python} alone. Add --peer torch."
            )
        if suite in PROGRAMS:
            if regret or peer or dtype != "float32" or tuple(roles) != ROLES:
                raise BenchError(
                    f"bench: --suite {suite} measures {PROGRAMS[suite]} in float32. "
                    "Leave out --regret, --peer, --dtype and --roles."
                )
            return _bench(console, *_programs(suite, only, rounds), json, plot)
        if regret and (peer or plot):
            raise BenchError(
                "bench: --regret compares algorithms with each other, and draws no "
                "picture. Leave out --peer and --plot."
            )
        cases = _cases(suite, only, sweep, seed or 0)
        wide = dtype == "float64"
        with jax.enable_x64(wide or jax.config.jax_enable_x64):
            jobs = [(case, role) for case in cases for role in roles]
            if regret:
                return _regret(console, jobs, dtype, rounds, json)
            with _peer(peer, peer_python) as other:

                def measured(job: tuple[ConvCase, str]) -> Row:
                    row = measure(*job, dtype, rounds=rounds)
                    if other is not None:
                        row = row._replace(peer=other.seconds(*job, dtype, rounds))
                    return row

                told = cases if sweep is not None else ()
                return _bench(console, jobs, measured, json, plot, told)
    except (BenchError, PeerError) as error:
        print(f"jaxconv: {error}", file=sys.stderr)
        return 1


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
    return list(only or known)


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


def _bench(
    console: Any,
    jobs: Sequence,
    measured: Callable[[Any], Row],
    json: Path | None,
    plot: Path | None,
    cases: Sequence[ConvCase] = (),
) -> int:
    """Stock against jaxconv, job by job; and which of `cases` gain least."""
    probed = probe()
    rows = _collect(console, jobs, measured, report.summary, probed, json)
    console.print(report.table(probed, rows, brief=console.width < WIDTH))
    if cases:
        console.print(report.slowest(cases, rows))
    console.print(
        f"This machine: {probed.gemm / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{probed.copy / 1e9:.1f} GB/s in a copy."
    )
    for line in report.lines(report.summary(rows)):
        console.print(line)
    if plot is not None and rows:
        report.plot(plot, probed, rows)
        console.print(f"Picture: {plot}")
    return 0 if len(rows) == len(jobs) else INTERRUPTED


def _regret(
    console: Any,
    jobs: Sequence[tuple[ConvCase, str]],
    dtype: str,
    rounds: int,
    json: Path | None,
) -> int:
    """Every algorithm that applies against the plan's choice."""

    def chosen(job: tuple[ConvCase, str]) -> Choice:
        return choose(*job, dtype, rounds=rounds)

    choices = _collect(console, jobs, chosen, report.regrets, probe(), json)
    console.print(report.choices_table(choices))
    for line in report.lines(report.regrets(choices)):
        console.print(line)
    return 0 if len(choices) == len(jobs) else INTERRUPTED


def _collect(
    console: Any,
    jobs: Sequence,
    measured: Callable[[Any], Any],
    summary: Callable[[Sequence], Mapping],
    machine: Machine,
    json: Path | None,
) -> list:
    """What was measured, job by job, until the last one or an interruption."""
    from rich.progress import track

    rows = []
    try:
        for job in track(jobs, "measuring", console=console, transient=True):
            rows.append(measured(job))
            if json is not None:
                complete = len(rows) == len(jobs)
                report.write_json(json, machine, rows, summary(rows), complete=complete)
    except KeyboardInterrupt:
        console.print(f"[red]Interrupted[/] after {len(rows)} of {len(jobs)}.")
    return rows
