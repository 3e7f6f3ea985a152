"""``python -m jaxconv check``: the library's own verification, on this machine."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import jaxconv.lax
from jaxconv.cases import CASES, ConvCase, random_case
from jaxconv.planner import gpu
from jaxconv.testing import LIMIT, Errors, Trial, error_units


def run(*, dtype: str, seed: int, cases: int) -> int:
    """Check every case of the table and random ones, and print a table.

    Args:
      dtype: name of the operands' dtype.
      seed: of the random cases and of the operands.
      cases: number of random cases.

    Returns:
      0, or 1 if an error is above `jaxconv.testing.LIMIT`.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console()
    wide = dtype in ("float64", "complex128")
    # On an accelerator, float32 means float32 here, and not a faster format.
    precise = jax.default_matmul_precision("highest")
    with precise, jax.enable_x64(wide or jax.config.jax_enable_x64):
        problems = [*CASES, *(random_case(seed + i) for i in range(cases))]
        todo = track(problems, "checking", console=console, transient=True)
        rows = [row for case in todo for row in _check(case, jnp.dtype(dtype), seed)]
    failures = [row for row in rows if not row["error"] <= LIMIT]
    failures += [
        row for row in rows if row["stock_right"] and not row["apart"] <= LIMIT
    ]
    _print(console, rows, failures, f"{dtype} on {jax.default_backend()}")
    return 1 if failures else 0


def _check(case: ConvCase, dtype: Any, seed: int) -> Iterator[dict[str, Any]]:
    """One row per role: errors of jaxconv and of stock, and how far they are apart."""
    trial = Trial(
        case.x_shape, case.kernel_shape, dtype=dtype, seed=seed, **case.geometry
    )
    ours, errors = _judged(trial, jaxconv.lax.conv_general_dilated, case)
    stock, stock_errors = ours, Errors(math.inf, math.inf, math.inf)
    if not _ends_the_process(case):
        stock, stock_errors = _judged(trial, jax.lax.conv_general_dilated, case)
    judged = zip(
        Errors._fields, ours, stock, errors, stock_errors, trial.terms, strict=True
    )
    for role, our, their, error, stock_error, terms in judged:
        yield {
            "case": case.name,
            "role": role,
            "error": error,
            "stock_right": stock_error <= LIMIT,
            "apart": error_units(our, their, dtype, terms),
        }


def _judged(trial: Trial, conv: Callable, case: ConvCase) -> tuple[tuple, Errors]:
    """What a function makes of the case, and its errors."""
    results = trial.results(functools.partial(conv, **case.geometry))
    return results, trial.errors(results)


def _ends_the_process(case: ConvCase) -> bool:
    """Whether XLA does so with stock's program: cuDNN has no more than three axes."""
    return jax.default_backend() == "gpu" and len(case.x_shape) > 2 + gpu.AXES


def _print(console: Any, rows: list, failures: list, where: str) -> None:
    """Worst errors per role, what failed, and where stock JAX itself is wrong."""
    from rich.table import Table

    table = Table(title=f"jaxconv check: {where}, errors in units of ε·√terms·max|y|")
    for column in ("role", "cases", "worst, against NumPy", "worst, against lax", ""):
        table.add_column(column)
    for role in Errors._fields:
        own = [row for row in rows if row["role"] == role]
        worst = max(own, key=lambda row: row["error"])
        apart = max((row["apart"] for row in own if row["stock_right"]), default=0.0)
        good = not any(row["role"] == role for row in failures)
        table.add_row(
            role.replace("_", " "),
            str(len(own)),
            f"{worst['error']:.2f} ({worst['case']})",
            f"{apart:.2f}",
            "[green]pass" if good else "[red]FAIL",
        )
    console.print(table)
    for row in failures:
        console.print(
            f"[red]FAIL[/] {row['case']}, {row['role']}: {row['error']:.3g} units from "
            f"NumPy, {row['apart']:.3g} from lax, limit {LIMIT:g}"
        )
    wrong = {row["case"] for row in rows if not row["stock_right"]}
    if wrong:
        console.print(
            f"Stock jax.lax is itself wrong on {len(wrong)} of the cases, or ends the "
            f"process ({', '.join(sorted(wrong))}); jaxconv was judged by NumPy alone "
            "there."
        )
