"""The commands, as a user starts them."""

import gc
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

import jaxconv.lax
from jaxconv.cli import main
from jaxconv.commands import INTERRUPTED, check


@pytest.fixture(autouse=True)
def as_users_have_it():
    """JAX's own settings: the commands are programs of their own."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_demo_trains_and_draws(tmp_path, capsys):
    out = tmp_path / "picture.png"
    assert main(["demo", "--steps", "3", "--out", str(out), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    for row in ("test accuracy", "step time", "compile time", "gradients apart"):
        assert row in printed
    (apart,) = re.findall(r"gradients apart.*?(\d\.\de-\d+)", printed)
    assert float(apart) < 1e-5
    assert out.read_bytes().startswith(b"\x89PNG")


def test_check_passes(monkeypatch, capsys):
    monkeypatch.setattr(check, "CASES", check.CASES[::8])
    assert main(["check", "--cases", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("pass") == 3
    assert "FAIL" not in printed


def test_check_fails_where_a_rule_is_broken(monkeypatch, capsys):
    right = jaxconv.lax.conv_general_dilated

    def broken(x, kernel, **geometry):
        return right(x, kernel, **geometry) * 1.001

    monkeypatch.setattr(check, "CASES", check.CASES[:3])
    monkeypatch.setattr(jaxconv.lax, "conv_general_dilated", broken)
    assert main(["check", "--cases", "1"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "units from NumPy" in printed.replace("\n", " ")


def test_check_in_double_precision_leaves_the_setting_alone(monkeypatch, capsys):
    monkeypatch.setattr(check, "CASES", check.CASES[:2])
    assert main(["check", "--dtype", "float64", "--cases", "1"]) == 0
    assert "float64 on cpu" in capsys.readouterr().out
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["train"], "invalid choice: 'train'"),
        (["demo", "--steps", "0"], "--steps: must be an int of at least 1, got '0'"),
        (["check", "--dtype", "float8"], "invalid choice: 'float8'"),
        (["check", "--cases", "-3"], "must be an int of at least 1, got '-3'"),
        (["check", "--seed", "-1"], "must be an int of at least 0, got '-1'"),
        (["demo", "--seed", "4294967296"], "of at least 0 and at most 4294967295"),
        (["bench", "--roles", ","], "must be one name or several, got ','"),
        (["bench", "--only", ""], "must be one name or several, got ''"),
        (["demo", "--out", "picture.xyz"], "must end in .png, .pdf, .svg or .jpg"),
        (
            ["demo", "--out", "no/folder/a.png"],
            "must be a file in a folder that exists",
        ),
        (["bench", "--json", "/proc/a.json"], "must be a file that can be written"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interruption_that_python_ignores_is_heeded(monkeypatch, capsys):
    def run(**_):
        def collected(phase, info):
            gc.callbacks.remove(collected)
            raise KeyboardInterrupt

        gc.callbacks.append(collected)
        gc.collect()
        for _ in range(100):
            time.sleep(0.05)

    monkeypatch.setattr(check, "run", run)
    hook = sys.unraisablehook
    # Shells start what runs in the background with interruptions ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["check"]) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "interrupted" in capsys.readouterr().err
    assert sys.unraisablehook is hook


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["check"]) == 1
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err


def test_module_runs_and_imports_nothing_of_the_extras():
    code = (
        "import sys, jaxconv, jaxconv.cli;"
        "sys.exit(any(m in sys.modules for m in "
        "('rich', 'matplotlib', 'sklearn', 'optax', 'scipy.signal')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    run = subprocess.run(
        [sys.executable, "-m", "jaxconv", "--help"], capture_output=True, check=True
    )
    assert b"demo" in run.stdout
