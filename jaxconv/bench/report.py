"""What a run of the benchmark found: summary, table, JSON and picture."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxconv.bench.machine import Machine
from jaxconv.bench.regret import Choice
from jaxconv.bench.rows import ROLES, Row
from jaxconv.cases import ConvCase


def geomean(ratios: Iterable[float]) -> float:
    """Geometric mean; NaN of nothing.

    Example:
      >>> geomean([1.0, 4.0])
      2.0
    """
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def over_peer(rows: Sequence[Row]) -> dict[str, float]:
    """Time over the peer's, by layer: the measured roles summed."""
    layers: dict[str, list[Row]] = {}
    for row in rows:
        if row.peer is not None:
            layers.setdefault(row.layer, []).append(row)
    return {
        layer: sum(row.jaxconv.fastest for row in own)
        / sum(row.peer for row in own if row.peer is not None)
        for layer, own in layers.items()
    }


def summary(rows: Sequence[Row]) -> dict[str, tuple[float, float, str]]:
    """Geomean, worst, and where the worst stands, of each ratio."""
    ratios = {
        "speed-up over stock": ({_name(row): row.speedup for row in rows}, min),
        "compile time over stock's": (
            {_name(row): row.compile_ratio for row in rows},
            max,
        ),
        "temporary memory over stock's": (
            {_name(row): row.memory_ratio for row in rows},
            max,
        ),
        "error over stock's": (
            {_name(row): row.error for row in rows if row.role in ROLES},
            max,
        ),
        "difference from stock's results": (
            {_name(row): row.error for row in rows if row.role not in ROLES},
            max,
        ),
        "time over the peer's": (over_peer(rows), max),
    }
    return {
        what: (
            geomean(of.values()),
            of[where := worst(of, key=of.__getitem__)],
            where,
        )
        for what, (of, worst) in ratios.items()
        if of
    }


def _name(row: Row | Choice) -> str:
    return f"{row.layer}, {row.role.replace('_', ' ')}"


def regrets(choices: Sequence[Choice]) -> dict[str, tuple[float, float, str]]:
    """`summary` of choices: geomean, worst, and where the worst stands."""
    if not choices:
        return {}
    worst = max(choices, key=lambda choice: choice.regret)
    where = f"{_name(worst)}: {worst.chosen}"
    if worst.best != worst.chosen:
        where += f", where {worst.best} is faster"
    mean = geomean(choice.regret for choice in choices)
    return {"regret": (mean, worst.regret, where)}


def write_json(
    path: Path,
    machine: Machine,
    rows: Sequence[Row | Choice],
    found: Mapping[str, tuple[float, float, str]],
    *,
    asked: Mapping[str, Any],
    cases: Sequence[ConvCase],
    complete: bool,
) -> None:
    """Everything that was measured, machine readable.

    Args:
      path: where to; what was there is replaced at once, or not at all.
      machine: on what.
      rows: what was measured so far.
      found: their summary.
      asked: the options of the run.
      cases: the layers, whose geometry is told; none where programs are measured.
      complete: whether that is all that was asked for.
    """
    report = {
        "machine": machine._asdict(),
        "asked": asked,
        "complete": complete,
        "rows": [_named(row) for row in rows],
        "summary": found,
        "layers": {case.name: dataclasses.asdict(case) for case in cases},
    }
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(report, indent=1))
    os.replace(new, path)


def _named(value: Any) -> Any:
    """Tuples with names as dictionaries, within others as well."""
    fields = value._asdict() if hasattr(value, "_asdict") else value
    if not isinstance(fields, Mapping):
        return value
    return {name: _named(field) for name, field in fields.items()}


def table(machine: Machine, rows: Sequence[Row], *, brief: bool = False) -> Any:
    """One line per layer and role, for `rich`.

    Args:
      machine: on what.
      rows: what was measured.
      brief: only times and speed-ups, for narrow terminals.
    """
    from rich.table import Table

    told = Table(title=machine.description)
    for column in ("layer", "role"):
        told.add_column(column, overflow="fold")

    def flops(row: Row) -> str:
        rate = row.flops / row.jaxconv.fastest
        return f"{rate / 1e9:.1f} ({rate / machine.gemm:.0%})"

    def moved(row: Row) -> str:
        rate = row.bytes / row.jaxconv.fastest
        return f"{rate / 1e9:.1f} ({rate / machine.copy:.0%})"

    columns: list[tuple[str, bool, Callable[[Row], str]]] = [
        ("stock ms", True, lambda row: f"{1e3 * row.stock.fastest:.2f}"),
        ("(median)", False, lambda row: f"{1e3 * row.stock.median:.2f}"),
        ("jaxconv ms", True, lambda row: f"{1e3 * row.jaxconv.fastest:.2f}"),
        ("(median)", False, lambda row: f"{1e3 * row.jaxconv.median:.2f}"),
        ("speed-up", True, lambda row: f"{row.speedup:.2f}"),
        ("GFLOP/s", False, flops),
        ("GB/s", False, moved),
        ("compile", False, lambda row: f"{row.compile_ratio:.1f}"),
        ("memory", False, lambda row: f"{row.memory_ratio:.2f}"),
        ("error", False, lambda row: f"{row.error:.2g}"),
    ]
    if any(row.peer for row in rows):
        columns.append(
            ("peer ms", True, lambda row: f"{1e3 * row.peer:.2f}" if row.peer else "")
        )
    kept = [(heading, cell) for heading, short, cell in columns if short or not brief]
    for heading, _ in kept:
        told.add_column(heading, justify="right")
    for row in rows:
        cells = (cell(row) for _, cell in kept)
        told.add_row(row.layer, row.role.replace("_", " "), *cells)
    return told


def slowest(cases: Sequence[ConvCase], rows: Sequence[Row], count: int = 10) -> Any:
    """The layers that gain least, with their geometry, for `rich`.

    Args:
      cases: the layers.
      rows: what was measured of them.
      count: how many to tell.
    """
    from rich.table import Table

    told = Table(title="the slowest, compared with stock")
    for column in ("speed-up", "layer", "role", "geometry"):
        told.add_column(column, overflow="fold")
    by_name = {case.name: case for case in cases}
    for row in sorted(rows, key=lambda row: row.speedup)[:count]:
        case = by_name[row.layer]
        told.add_row(
            f"{row.speedup:.2f}",
            row.layer,
            row.role.replace("_", " "),
            f"x {case.x_shape} kernel {case.kernel_shape} strides "
            f"{case.window_strides} padding {case.padding} dilations "
            f"{case.lhs_dilation} {case.rhs_dilation} groups "
            f"{case.feature_group_count} {case.dimension_numbers[0]}",
        )
    return told


def lines(found: Mapping[str, tuple[float, float, str]]) -> list[str]:
    """The end of the report: geomean and worst of each ratio of a summary."""
    return [
        f"{what}: geomean {mean:.3g}, worst {worst:.3g} ({where})"
        for what, (mean, worst, where) in found.items()
    ]


def choices_table(choices: Sequence[Choice]) -> Any:
    """One line per problem: the plan's choice and the best, for `rich`."""
    from rich.table import Table

    told = Table(title="how far the plan is from the best algorithm")
    for column in ("layer", "role", "chosen", "best", "regret", "all, ms"):
        told.add_column(column, overflow="fold")
    for choice in choices:
        by_time = sorted(choice.timings.items(), key=lambda item: item[1].fastest)
        told.add_row(
            choice.layer,
            choice.role.replace("_", " "),
            choice.chosen,
            choice.best,
            f"{choice.regret:.2f}",
            ", ".join(f"{name} {1e3 * t.fastest:.2f}" for name, t in by_time),
        )
    return told


def plot(path: Path, machine: Machine, rows: Sequence[Row]) -> None:
    """One bar per layer and role: the speed-up over stock, on a log axis.

    Args:
      path: where to.
      machine: on what.
      rows: what was measured.
    """
    figure(machine, rows).savefig(path, dpi=110)


def figure(machine: Machine, rows: Sequence[Row]) -> Any:
    """The picture, for `matplotlib`.

    Args:
      machine: on what.
      rows: what was measured.
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in rows))
    drawn = Figure(figsize=(8, 1 + 0.36 * len(layers)), layout="constrained")
    axes = drawn.subplots()
    roles = list(dict.fromkeys(row.role for row in rows))
    height = 0.8 / max(len(roles), 1)
    for i, role in enumerate(roles):
        own = [row for row in rows if row.role == role]
        aside = (i - (len(roles) - 1) / 2) * height
        places = [layers.index(row.layer) + aside for row in own]
        axes.barh(
            places,
            [row.speedup - 1 for row in own],
            height,
            left=1,
            label=role.replace("_", " "),
        )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.invert_yaxis()
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("times as fast as stock JAX")
    axes.set_title(machine.description, fontsize=8)
    axes.legend(fontsize=8)
    return drawn
