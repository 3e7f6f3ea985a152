"""The commands of ``python -m jaxconv``."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_EXTRA = "rich", "matplotlib", "optax", "sklearn"


def _at_least(least: int) -> Callable[[str], int]:
    """An int from `least` on, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            message = f"must be an int of at least {least}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def _picture(text: str) -> Path:
    """A file that a picture can be written to, for argparse."""
    path = Path(text)
    if path.suffix not in (".png", ".pdf", ".svg", ".jpg"):
        message = f"must end in .png, .pdf, .svg or .jpg, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    if path.is_dir() or not path.parent.is_dir():
        message = f"must be a file in a folder that exists, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return path


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
        "--seed", type=_at_least(0), default=0, help="of parameters and batches"
    )
    demo.add_argument(
        "--out",
        type=_picture,
        default=Path("jaxconv-demo.png"),
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: as on the command line; None for those of this process.

    Returns:
      The exit status: 0, or 1 where something was found wrong.
    """
    options = vars(_parser().parse_args(arguments))
    command = importlib.import_module(f"jaxconv.commands.{options.pop('command')}")
    try:
        return command.run(**options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        print(
            f'jaxconv: this command needs {package}: pip install "jaxconv[demo]"',
            file=sys.stderr,
        )
        return 1
