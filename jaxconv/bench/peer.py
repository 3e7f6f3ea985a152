"""Another library as a yardstick: a process of its own, asked layer by layer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxconv.arguments import Caller, conv_spec
from jaxconv.cases import ConvCase


class PeerError(RuntimeError):
    """The other library is missing, or failed."""


class Peer:
    """torch, in a child process; a context manager that ends it.

    Args:
      python: the interpreter that has torch; None for this one.

    Raises:
      PeerError: if that interpreter has no torch.
    """

    def __init__(self, python: str | None = None):
        """Start it."""
        program = Path(__file__).with_name("torch_peer.py")
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as cause:
            raise PeerError(
                f"bench: --peer-python must be an interpreter that has torch, but got "
                f"{python} ({cause}). Name one that can be run."
            ) from cause
        greeting = self._answer()
        if greeting != "ready":
            told = (self._end() or str(greeting or "nothing")).splitlines()[-1]
            raise PeerError(
                f"bench: --peer torch needs torch in {python or sys.executable}, but "
                f"it said: {told}. Install it there (pip install torch), or name an "
                "interpreter that has it by --peer-python."
            )

    def _answer(self) -> Any:
        """What it wrote on a line, as it stands where that is no JSON; or None."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            return json.loads(line) if line else None
        except json.JSONDecodeError:
            return line.strip()

    def _end(self) -> str:
        """End the process; what it had to say of errors."""
        self._process.kill()
        _, said = self._process.communicate()
        return said.strip()

    def seconds(self, case: ConvCase, role: str, dtype: str, rounds: int) -> float:
        """The fastest of so many runs of the layer's role, in its faster layout."""
        spec = conv_spec(
            Caller("bench"), case.x_shape, case.kernel_shape, **case.geometry
        )
        x_axes, kernel_axes, _ = spec.dimension_numbers
        asked = {
            "role": role,
            "dtype": dtype,
            "rounds": rounds,
            "x_shape": [case.x_shape[axis] for axis in x_axes],
            "kernel_shape": [case.kernel_shape[axis] for axis in kernel_axes],
            "strides": spec.window_strides,
            "padding": spec.padding,
            "lhs_dilation": spec.lhs_dilation,
            "rhs_dilation": spec.rhs_dilation,
            "groups": spec.feature_group_count,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not isinstance(answer, float):
            told = self._end() or answer
            raise PeerError(f"bench: torch failed on {case.name}, {role}: {told}")
        return answer

    def __enter__(self) -> "Peer":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()
