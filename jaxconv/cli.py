"""The commands of ``python -m jaxconv``."""

import _thread
import argparse
import contextlib
import importlib
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxconv.bench.rows import ROLES
from jaxconv.bench.zoo import SUITES
from jaxconv.commands import INTERRUPTED

_EXTRA = "rich", "matplotlib", "optax", "sklearn", "flax"
_PICTURES = ".png", ".pdf", ".svg", ".jpg"


def _at_least(least: int, most: float = math.inf) -> Callable[[str], int]:
    """An int from `least` on, and up to `most`, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            end = "" if most == math.inf else f" and at most {most}"
            message = f"must be an int of at least {least}{end}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def _file(*suffixes: str) -> Callable[[str], Path]:
    """A file of one of these kinds that can be written, for argparse."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            allowed = ", ".join(suffixes[:-1]) + " or " * (len(suffixes) > 1)
            message = f"must end in {allowed}{suffixes[-1]}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        if path.is_dir() or not path.parent.is_dir():
            message = f"must be a file in a folder that exists, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        new = not path.exists()
        try:
            path.open("ab").close()
        except OSError as cause:
            message = f"must be a file that can be written, got {text!r} ({cause})"
            raise argparse.ArgumentTypeError(message) from cause
        if new:
            path.unlink()
        return path

    return parse


def _names(text: str) -> tuple[str, ...]:
    """One name or several, separated by commas, for argparse."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"must be one name or several, got {text!r}")
    return names


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Names out of the known ones, for argparse."""

    def parse(text: str) -> tuple[str, ...]:
        names = _names(text)
        if not set(names) <= set(known):
            message = f"must be some of {', '.join(known)}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return names

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxconv",
        description="Convolutions in JAX whose gradients are convolutions.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="train a small CNN on handwritten digits, stock against jaxconv"
    )
    demo.add_argument("--steps", type=_at_least(1), default=500, help="training steps")
    demo.add_argument(
        "--seed",
        type=_at_least(0, 2**32 - 1),
        default=0,
        help="of parameters and batches",
    )
    demo.add_argument(
        "--out",
        type=_file(*_PICTURES),
        default="jaxconv-demo.png",
        help="where the picture goes",
    )

    check = commands.add_parser(
        "check", help="verify convolutions and gradients on this machine"
    )
    check.add_argument(
        "--dtype",
        default="float32",
        choices=(
            *("float16", "bfloat16", "float32", "float64"),
            *("complex64", "complex128"),
        ),
    )
    check.add_argument(
        "--seed", type=_at_least(0), default=0, help="of cases and operands"
    )
    check.add_argument(
        "--cases", type=_at_least(1), default=24, help="random cases beside the table"
    )
    _add_bench(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="time convolutions and gradients, stock against jaxconv"
    )
    bench.add_argument(
        "--suite",
        default="zoo",
        choices=(*SUITES, "models", "transforms"),
        help="which layers, training steps of whole models, or layers under transforms",
    )
    bench.add_argument(
        "--only", type=_names, help="layers of the suite, separated by commas"
    )
    bench.add_argument(
        "--roles",
        type=_some_of(ROLES),
        default=ROLES,
        help=f"separated by commas: {', '.join(ROLES)}",
    )
    bench.add_argument(
        "--dtype",
        default="float32",
        choices=("float16", "bfloat16", "float32", "float64"),
    )
    bench.add_argument(
        "--rounds", type=_at_least(9), default=9, help="runs of each program, at least"
    )
    bench.add_argument("--json", type=_file(".json"), help="keep every figure here")
    bench.add_argument("--plot", type=_file(*_PICTURES), help="draw the speed-ups here")
    bench.add_argument("--peer", choices=("torch",), help="compare with it, too")
    bench.add_argument("--peer-python", help="interpreter that has torch")
    bench.add_argument(
        "--sweep", type=_at_least(1), metavar="N", help="N random layers instead"
    )
    bench.add_argument("--seed", type=_at_least(0), help="of the sweep, 0 by default")
    bench.add_argument(
        "--regret",
        action="store_true",
        help="time every algorithm that applies, to judge the plan",
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Interrupt once more where Python ignored it.

    It does so in finalizers and hooks of the garbage collector, of which JAX has one.
    """
    before = sys.unraisablehook

    def hook(ignored: Any) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # Not at once, or it would be ignored here as well.
            threading.Timer(0.1, _thread.interrupt_main).start()
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: as on the command line; None for those of this process.

    Returns:
      The exit status: 0, 1 where something was found wrong, 130 after Ctrl-C.
    """
    options = vars(_parser().parse_args(arguments))
    command = importlib.import_module(f"jaxconv.commands.{options.pop('command')}")
    try:
        with _interruptible():
            return command.run(**options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        print(
            f"jaxconv: this command needs {package}: install jaxconv with its extra "
            'demo, as in pip install -e ".[demo]"',
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("jaxconv: interrupted", file=sys.stderr)
        return INTERRUPTED
