"""What an algorithm is, and what it leaves its smaller convolutions to."""

from typing import Any, Protocol

import jax

from jaxconv.spec import ConvProblem, ConvSpec


class Conv(Protocol):
    """What algorithms leave smaller convolutions to."""

    def __call__(
        self,
        spec: ConvSpec,
        x: jax.Array,
        kernel: jax.Array,
        precision: Any = ...,
    ) -> jax.Array:
        """Compute it at the problem's precision, or that of exchanged operands."""
        ...


class Algorithm(Protocol):
    """What each identity's module offers."""

    def applies(self, problem: ConvProblem) -> bool:
        """Whether the identity holds for `problem` and simplifies it."""
        ...

    def run(
        self, problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """Compute `problem`, leaving smaller convolutions to `conv`."""
        ...


class Costed(Algorithm, Protocol):
    """An algorithm whose cost is told in the time of one processor on all of them."""

    def cost(self, problem: ConvProblem) -> float:
        """Seconds, about, that `run` takes."""
        ...


class Divided(Algorithm, Protocol):
    """An algorithm that leaves blocks of its problem to others, one by one."""

    def of_block(self, problem: ConvProblem) -> tuple[int, ConvProblem]:
        """How many blocks there are, and the problem of one."""
        ...
