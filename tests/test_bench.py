"""The benchmark: what it times is what it says, and what it says is kept."""

import json
import math
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
import jaxconv.lax
from jaxconv.bench import ROLES, SUITES, ZOO, compare, layer, random_layer, report
from jaxconv.bench.accuracy import error_of
from jaxconv.bench.machine import Machine
from jaxconv.bench.models import MODELS, training_step
from jaxconv.bench.peer import Peer
from jaxconv.bench.regret import Choice, choose
from jaxconv.bench.rows import (
    SLACK,
    Row,
    measure,
    operands,
    problem_of,
    program,
)
from jaxconv.bench.timing import Timing
from jaxconv.bench.transforms import TRANSFORMED
from jaxconv.cli import main
from jaxconv.commands import bench, demo
from jaxconv.explanation import explain
from jaxconv.testing import reference_conv_vjp

SMALL = (
    layer("a", 2, (9, 8), 4, 6, (3, 2), strides=2, padding=(1, 0)),
    layer("b", 2, (9,), 4, 4, (3,), groups=4, padding=(2, 0), channels_first=True),
    layer("c", 1, (4, 3, 5), 2, 3, (2, 2, 2), input_dilation=2, padding=(1, 1)),
)


@pytest.fixture
def small(monkeypatch):
    """The command, on layers of no size, as users have JAX."""
    monkeypatch.setitem(SUITES, "zoo", SMALL)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(bench, "probe", lambda dtype: Machine("here", 1e11, 1e10))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def timing(fastest, **changes):
    fields = {"median": 2 * fastest, "compile": 1.0, "temporary": 0, **changes}
    return Timing(fastest, **fields)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("conv", ["stock", "jaxconv"])
def test_programs_compute_their_roles(case, conv):
    functions = {"stock": lax, "jaxconv": jaxconv.lax}
    function = functions[conv].conv_general_dilated
    x, kernel = operands(case, "forward", jnp.float32)
    g, _ = operands(case, "input_gradient", jnp.float32)
    expected = reference_conv_vjp(x, kernel, g, **case.geometry)
    for role, reference in zip(ROLES, expected, strict=True):
        arrays = {
            "forward": (x, kernel),
            "input_gradient": (g, kernel),
            "kernel_gradient": (x, g),
        }[role]
        assert [a.shape for a in operands(case, role, jnp.float32)] == [
            a.shape for a in arrays
        ]
        got = jax.jit(program(function, case, role, jnp.float32))(*arrays)
        np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-4)


def test_the_zoo_has_the_layers_of_the_field():
    assert len(ZOO) == 32 == len({case.name for case in ZOO})
    by_name = {case.name: case for case in ZOO}
    stem = by_name["resnet50.stem7x7s2"]
    assert (stem.x_shape, stem.kernel_shape) == ((8, 224, 224, 3), (7, 7, 3, 64))
    assert stem.window_strides == (2, 2)
    first = by_name["jax#13800.dw1d"]
    assert (first.x_shape, first.kernel_shape) == ((8, 512, 1024), (512, 1, 5))
    # 8 images of 112 x 112 points, 64 features, 147 products and sums for each.
    problem = problem_of(stem, "forward", jnp.float32)
    assert problem.flops == 2 * 8 * 112 * 112 * 64 * 147
    assert problem.bytes == 4 * (8 * 224 * 224 * 3 + 147 * 64 + 8 * 112 * 112 * 64)
    assert all(len(suite) > 1 for suite in SUITES.values())
    assert all("dw" in case.name for case in SUITES["depthwise"])
    # Each entry of a transposed layer's input meets each tap once.
    problem = problem_of(by_name["unet3d.convT2x2x2"], "forward", jnp.float32)
    assert problem.flops == 2 * 16**3 * 64 * 32 * 8


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_errors_are_judged_on_a_part_of_the_layer(case):
    x, kernel = operands(case, "forward", jnp.float32)
    g, _ = operands(case, "input_gradient", jnp.float32)
    results = reference_conv_vjp(x, kernel, g, **case.geometry)
    given = {
        "forward": (x, kernel),
        "input_gradient": (g, kernel),
        "kernel_gradient": (x, g),
    }
    for role, result in zip(ROLES, results, strict=True):
        judge, right = error_of(case, role, given[role]), result.astype(np.float32)
        scale = np.abs(right).max()
        # What is wrong by less than rounding counts as rounding.
        assert judge(right) == np.finfo(np.float32).eps / 2
        assert 1 <= judge(right + scale) < 20  # over the largest entry of a part
        assert judge(right + 3 * scale) == pytest.approx(3 * judge(right + scale), 1e-4)


def test_programs_run_in_turn_and_ties_are_measured_for_longer():
    runs = []

    def note(name, work):
        def run(x):
            jax.debug.callback(lambda: runs.append(name))
            return jax.lax.fori_loop(0, work, lambda _, x: jnp.sin(x), x)

        return run

    programs = {"a": note("a", 1), "b": note("b", 30_000)}  # b loses, for certain
    timings = compare(programs, [jnp.ones(2)], rounds=5, seconds=0)
    jax.effects_barrier()
    # Once to warm up, then five rounds, every other one backwards.
    assert runs == ["a", "b"] + ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert all(t.fastest <= t.median and t.compile > 0 for t in timings.values())
    runs.clear()
    compare(programs, [jnp.ones(2)], rounds=5, seconds=0.1)
    jax.effects_barrier()
    assert runs[:2] == ["a", "b"] and len(runs) > 12


def test_hopeless_programs_run_once():
    runs = []

    def slow(x):
        def wait():
            runs.append(1)
            import time

            time.sleep(0.05)

        jax.debug.callback(wait, ordered=True)
        return x + 1

    programs = {"fast": jnp.sin, "slow": slow}
    timings = compare(programs, [jnp.ones(2)], seconds=0, hopeless=5)
    jax.effects_barrier()
    assert len(runs) == 1
    assert timings["fast"].fastest < timings["slow"].fastest


def test_ratios_of_a_row():
    row = Row("a", "forward", timing(4.0, temporary=SLACK), timing(2.0), 10, 10, 1.0)
    assert row.speedup == 2
    assert row.compile_ratio == 1
    assert row.memory_ratio == 0.01
    more = row._replace(jaxconv=timing(2.0, temporary=4 * SLACK, compile=3.0))
    assert (more.memory_ratio, more.compile_ratio) == (2, 3)


def test_summary_has_geomean_worst_and_where():
    rows = [
        Row("a", "forward", timing(8.0), timing(2.0), 1, 1, 0.5, peer=1.0),
        Row("a", "input_gradient", timing(1.0), timing(1.0), 1, 1, 2.0, peer=5.0),
        Row("b", "forward", timing(1.0), timing(2.0), 1, 1, 0.5, peer=1.0),
    ]
    told = report.summary(rows)
    mean, worst, where = told["speed-up over stock"]
    assert mean == pytest.approx(2 ** (1 / 3))
    assert (worst, where) == (0.5, "b, forward")
    mean, worst, where = told["time over the peer's"]
    assert mean == pytest.approx(1.0)  # (2 + 1) / (1 + 5) and 2 / 1
    assert (worst, where) == (2.0, "b")
    assert "time over the peer's" not in report.summary([rows[0]._replace(peer=None)])
    assert math.isnan(report.geomean([]))


def test_random_layers_are_of_all_kinds():
    cases = [random_layer(seed) for seed in range(150)]
    assert random_layer(7) == cases[7]
    groups = {case.feature_group_count for case in cases}
    assert {len(case.x_shape) for case in cases} == {3, 4, 5}
    assert 1 in groups
    assert len(groups) > 5
    for field in ("window_strides", "lhs_dilation", "rhs_dilation"):
        assert sum(max(getattr(case, field)) > 1 for case in cases) > 10
    assert {case.dimension_numbers[0][1] == "C" for case in cases} == {True, False}
    for case in cases:
        assert all(
            math.prod(problem_of(case, r, "float32").output_shape) for r in ROLES
        )


def test_gradients_have_the_products_of_their_layer():
    strided = layer("", 1, (9,), 2, 3, (3,), strides=2, padding=(1, 1))
    rows = [measure(strided, role, rounds=1, seconds=0) for role in ROLES]
    assert {row.flops for row in rows} == {2 * 5 * 3 * 2 * 3}


def test_choices_time_what_applies():
    choice = choose(SMALL[1], "kernel_gradient", rounds=1, seconds=0)
    assert choice.chosen in choice.timings
    assert {"direct", "depthwise_gradient", "patches_gradient"} <= {*choice.timings}


def test_the_regret_is_the_time_lost_by_the_choice():
    one, two, three = (timing(seconds) for seconds in (3.0, 2.0, 4.0))
    timings = {"direct": one, "patches": two, "pad": three}
    choice = Choice("", "forward", "direct", timings)
    assert (choice.best, choice.regret) == ("patches", 1.5)


def test_bench_prints_and_writes(small, tmp_path, capsys):
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "--json", str(out), "--plot", str(picture), "--only", "a,c"]
    assert main([*arguments, "--roles", "forward,kernel_gradient"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "speed-up over stock: geomean",
        "compile time over",
        "memory over",
        "error over stock's: geomean",
    ):
        assert text in printed
    kept = json.loads(out.read_text())
    assert kept["complete"] is True
    assert kept["asked"]["suite"] == "zoo"
    assert kept["asked"]["roles"] == ["forward", "kernel_gradient"]
    assert kept["layers"]["a"]["kernel_shape"] == list(SMALL[0].kernel_shape)
    assert [(row["layer"], row["role"]) for row in kept["rows"]] == [
        *(("a", "forward"), ("a", "kernel_gradient")),
        *(("c", "forward"), ("c", "kernel_gradient")),
    ]
    assert all(row["stock"]["fastest"] > 0 for row in kept["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("roles", [ROLES[:1], ROLES[:2], ROLES])
def test_bars_stand_around_their_labels(roles):
    rows = [
        Row(name, role, timing(2.0), timing(1.0), 1, 1, 1.0)
        for name in "ab"
        for role in roles
    ]
    (axes,) = report.figure(Machine("here", 1e11, 1e10), rows).axes
    centres = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    for place in range(2):  # a role's bars are drawn together
        np.testing.assert_allclose(np.mean(centres[place::2]), place, atol=1e-9)
    assert len(centres) == 2 * len(roles)


def test_an_interrupted_bench_keeps_what_it_measured(
    small, tmp_path, capsys, monkeypatch
):
    measured = []

    def interrupted(case, role, dtype, **options):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(role)
        return measure(case, role, dtype, rounds=1, seconds=0)

    monkeypatch.setattr(bench, "measure", interrupted)
    out = tmp_path / "bench.json"
    assert main(["bench", "--json", str(out)]) == bench.INTERRUPTED
    kept = json.loads(out.read_text())
    assert (kept["complete"], len(kept["rows"])) == (False, 2)
    assert "Interrupted after 2 of 9" in capsys.readouterr().out


def test_a_run_that_measured_nothing_leaves_no_older_figures(
    small, tmp_path, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", interrupted)
    out = tmp_path / "bench.json"
    out.write_text('{"complete": true}')
    assert main(["bench", "--json", str(out)]) == bench.INTERRUPTED
    kept = json.loads(out.read_text())
    assert (kept["complete"], kept["rows"]) == (False, [])
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("arguments", [["bench", "--plot"], ["demo", "--out"]])
def test_a_picture_needs_matplotlib_before_the_run(
    arguments, small, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench, "probe", lambda *_: pytest.fail("was begun"))
    monkeypatch.setattr(demo, "init", lambda *_: pytest.fail("was begun"))
    assert main([*arguments, str(tmp_path / "picture.png")]) == 1
    assert "this command needs matplotlib" in capsys.readouterr().err


def test_names_that_are_asked_for_twice_are_measured_once(small, tmp_path):
    out = tmp_path / "bench.json"
    arguments = ["bench", "--only", "a,a", "--roles", "forward,forward"]
    assert main([*arguments, "--json", str(out)]) == 0
    assert len(json.loads(out.read_text())["rows"]) == 1


def test_the_best_plan_is_not_told_to_lose():
    choice = Choice("a", "forward", "direct", {"direct": timing(1.0)})
    assert report.regrets([choice])["regret"][2] == "a, forward: direct"


@pytest.mark.parametrize("run", [measure, choose])
def test_unknown_roles_are_named(run):
    with pytest.raises(ValueError, match="but got role='kernel_grad'"):
        run(SMALL[0], "kernel_grad", rounds=1, seconds=0)


def test_nothing_is_compared_without_a_round():
    with pytest.raises(ValueError, match="but got rounds=0 and 1 programs"):
        compare({"a": jnp.sin}, [jnp.ones(3)], rounds=0)
    with pytest.raises(ValueError, match="and 0 programs"):
        compare({}, [jnp.ones(3)])


def test_bench_judges_the_plan(small, tmp_path, capsys):
    out, command = tmp_path / "regret.json", ["bench", "--regret", "--only", "a"]
    assert main([*command, "--roles", "forward", "--json", str(out)]) == 0
    assert "regret: geomean" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    (row,) = kept["rows"]
    assert kept["complete"] is True
    assert row["chosen"] in row["timings"]
    assert row["timings"]["direct"]["fastest"] > 0
    assert kept["summary"]["regret"][0] >= 1
    assert main([*command, "--plot", str(tmp_path / "regret.png")]) == 1
    assert "Leave out --peer and --plot" in capsys.readouterr().err


def test_bench_sweeps(small, capsys, monkeypatch):
    monkeypatch.setattr(bench, "random_layer", lambda seed: SMALL[seed - 4])
    command = ["bench", "--seed", "4", "--roles", "forward"]
    assert main(command) == 1
    assert "--seed 4 alone" in capsys.readouterr().err
    assert main([*command, "--sweep", "2"]) == 0
    printed = capsys.readouterr().out
    assert "speed-up over stock" in printed
    assert "slowest" in printed
    assert "strides (2, 2)" in printed


def test_bench_times_training_steps(small, tmp_path, capsys):
    out, picture = tmp_path / "models.json", tmp_path / "models.png"
    arguments = ["bench", "--suite", "models", "--only", "vit", "--json", str(out)]
    assert main([*arguments, "--plot", str(picture)]) == 0
    assert "difference from stock's results" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["layer"], row["role"]) == ("vit", "training_step")
    assert 0 < row["error"] < 1e-5
    assert row["flops"] == 2 * (2 * 4 * 14**2 * 384 * 16**2 * 3)  # no dx is needed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_times_layers_under_transforms(small, tmp_path, capsys):
    out = tmp_path / "transforms.json"
    arguments = ["bench", "--suite", "transforms", "--only", "examples.many"]
    assert main([*arguments, "--json", str(out)]) == 0
    assert "difference from stock's results" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["layer"], row["role"]) == ("examples.many", "transformed")
    assert row["flops"] >= 2 * 512 * 14**2 * 9 * 8 * 8
    assert main(["bench", "--suite", "transforms", "--roles", "forward"]) == 1
    assert "layers under vmap" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(TRANSFORMED))
def test_transformed_layers_are_those_of_stock(name, integers):
    program, shapes = TRANSFORMED[name]
    # Fewer images, examples or members; a single kernel has its taps first.
    few = [(min(shape[0], 3), *shape[1:]) for shape in shapes]
    operands = [jnp.asarray(integers(*shape)) for shape in few]
    own, stock = (
        jax.jit(fn)(*operands) for fn in (jaxconv.accelerate(program), program)
    )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(stock))
    chex.assert_trees_all_close(own, stock, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_have_what_they_are_known_for(name, small):
    step, arguments = training_step(name)
    shapes = jax.eval_shape(arguments)
    variables, state, value, gradients = jax.eval_shape(step, *shapes)
    # As they were given, so that the next step can be taken with them.
    chex.assert_trees_all_equal_shapes_and_dtypes((variables, state), shapes[:2])
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, variables["params"])
    assert value.shape == ()
    convolutions = explain(step, *shapes).convolutions
    roles = {conv.role for conv in convolutions}
    assert {"forward", "kernel gradient"} <= roles
    kinds = {
        "mobilenetv2": lambda conv: conv.problem.spec.groups >= 32,
        "resnet18": lambda conv: conv.problem.spec.groups == 1,
        "resnext": lambda conv: conv.problem.spec.groups == 32,
        "convnext": lambda conv: conv.problem.kernel_spatial == (7, 7),
        "efficientnet": lambda conv: conv.problem.kernel_spatial == (5, 5),
        "unet3d": lambda conv: max(conv.problem.spec.lhs_dilation) == 2,
        "dcgan": lambda conv: max(conv.problem.spec.lhs_dilation) == 2,
        "tcn": lambda conv: max(conv.problem.spec.rhs_dilation) == 128,
        "vit": lambda conv: conv.problem.kernel_spatial == (16, 16),
    }
    assert any(map(kinds[name], convolutions))


def test_models_take_no_roles(small, capsys):
    assert main(["bench", "--suite", "models", "--roles", "forward"]) == 1
    assert "whole training steps" in capsys.readouterr().err
    assert main(["bench", "--suite", "models", "--only", "alexnet"]) == 1
    assert "Choose from mobilenetv2, resnet18" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "1", "--only", "a"], "Leave out --suite and --only."),
        (["--sweep", "1", "--suite", "models"], "Leave out --suite and --only."),
        (["--peer-python", "python"], "Add --peer torch."),
        (["--peer", "torch", "--peer-python", "/nope"], "but got /nope"),
        (["--only", "nosuch,"], "--only nosuch. Choose from a, b, c."),
    ],
)
def test_options_that_would_be_lost_are_refused(options, message, small, capsys):
    assert main(["bench", *options]) == 1
    assert message in capsys.readouterr().err


def test_narrow_terminals_show_times_and_speed_ups(small, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "--only", "a", "--roles", "forward"]) == 0
    told = capsys.readouterr().out
    assert "stock ms" in told and "speed-up" in told and "(median)" not in told


def test_unknown_layers_are_named(small, capsys):
    assert main(["bench", "--only", "a,nosuch"]) == 1
    assert "--only nosuch. Choose from a, b, c." in capsys.readouterr().err


def test_an_interpreter_without_torch_is_named(small, tmp_path, capsys):
    without = tmp_path / "python"
    without.write_text("#!/bin/sh\necho \"No module named 'torch'\" >&2\nexit 1\n")
    without.chmod(0o755)
    assert main(["bench", "--peer", "torch", "--peer-python", str(without)]) == 1
    said = capsys.readouterr().err
    assert str(without) in said
    assert "it said: No module named 'torch'. Install" in said
    assert "pip install torch" in said


@pytest.mark.parametrize(
    ("program", "told"), [("true", "nothing"), ("echo no torch", "no torch")]
)
def test_what_is_no_interpreter_is_told_to_be_none(
    program, told, small, tmp_path, capsys
):
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\n{program}\n")
    other.chmod(0o755)
    assert main(["bench", "--peer", "torch", "--peer-python", str(other)]) == 1
    assert f"it said: {told}. Install it there" in capsys.readouterr().err


def test_a_peer_that_fails_leaves_what_was_measured(small, tmp_path, capsys):
    other, out = tmp_path / "python", tmp_path / "bench.json"
    other.write_text(
        "#!/bin/sh\necho '\"ready\"'; read a; echo 0.5; read b; echo too large >&2\n"
    )
    other.chmod(0o755)
    arguments = ["bench", "--peer", "torch", "--peer-python", str(other)]
    assert main([*arguments, "--only", "a", "--json", str(out)]) == 1
    said = capsys.readouterr()
    assert "torch failed on a, input_gradient: too large" in said.err
    assert "time over the peer's" in said.out
    (row,) = json.loads(out.read_text())["rows"]
    assert row["peer"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "zoos"], "invalid choice: 'zoos'"),
        (["--roles", "backward"], "must be some of forward, input_gradient, kernel_gr"),
        (["--rounds", "3"], "must be an int of at least 9, got '3'"),
        (["--json", "bench.txt"], "must end in .json, got 'bench.txt'"),
        (["--peer", "tensorflow"], "invalid choice: 'tensorflow'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["bench", *arguments])
    assert message in capsys.readouterr().err


def test_the_peer_is_asked_in_its_own_layout(monkeypatch, tmp_path):
    # A stand-in that keeps what it was asked: N, C, *I and F, C/G, *K.
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "print(json.dumps('ready'), flush=True)\n"
        f"kept = open({str(tmp_path / 'asked')!r}, 'w')\n"
        "for line in sys.stdin:\n"
        "    print(line, end='', file=kept, flush=True)\n"
        "    print(0.5, flush=True)\n"
    )
    stand_in.chmod(0o755)
    with Peer(str(stand_in)) as peer:
        assert peer.seconds(SMALL[0], "forward", "float32", 9) == 0.5
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked["x_shape"] == [2, 4, 9, 8]
    assert asked["kernel_shape"] == [6, 4, 3, 2]
    assert (asked["strides"], asked["padding"]) == ([2, 2], [[1, 0], [1, 0]])
