"""The documents say what is so: examples run, names are listed, the rooms are kept."""

import ast
import inspect
import re
from pathlib import Path

import jax
import pytest

import jaxconv
import jaxconv.lax
from jaxconv.algorithms import ALGORITHMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]
SOURCES = sorted((ROOT / "jaxconv").rglob("*.py"))


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_examples_run(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec("\n".join(blocks), {})


def test_every_algorithm_is_among_the_identities():
    text = (ROOT / "docs" / "identities.md").read_text()
    assert not {name for name in ALGORITHMS if f"`{name}`" not in text}
    assert not [page for page in PAGES if "$$" in page.read_text()]  # nothing draws it


def test_every_public_name_is_in_the_api_page():
    names = {
        f"jaxconv.{name}"
        for name, value in vars(jaxconv).items()
        if not (name.startswith("_") or inspect.ismodule(value))
    }
    names |= {f"jaxconv.lax.{name}" for name in jaxconv.lax.__all__}
    text = (ROOT / "docs" / "api.md").read_text()
    assert len(names) > 15
    assert not {name for name in names if not re.search(rf"{name}\b", text)}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_internals_of_jax_are_imported_by_the_primitive_alone(source):
    text = source.read_text()
    assert "jax._src" not in text
    if source.name == "transform.py":
        text = text.replace("from jax.extend.core", "")
    if source.name != "primitive.py":
        assert not re.search(
            r"jax\.(extend|interpreters)|from jax import .*extend", text
        )


ORDER = [
    *("processor", "spec", "arguments", "calculus", "algorithms", "planner"),
    *("primitive", "unfold", "lax"),
    *(
        "linear_maps",
        "layer",
        "params",
        "functional",
        "norms",
        "checkpoint_policies",
        "transform",
        "explanation",
        "cases",
    ),
    *("testing", "bench", "commands", "cli"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_imports_point_down(source):
    room = source.relative_to(ROOT / "jaxconv").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for other in imported_rooms(source) - {room}:
        assert ORDER.index(other) < ORDER.index(room), f"{room} imports {other}"


def imported_rooms(source):
    """Files and folders of the package that a file imports from, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(source.read_text())):
        paths = []
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        for path in paths:
            package, _, inner = path.partition(".")
            if package == "jaxconv" and inner.partition(".")[0] in ORDER:
                rooms.add(inner.partition(".")[0])
    return rooms
