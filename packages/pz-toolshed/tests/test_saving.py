import errno
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.variables import (
    Parameter,
    ParameterSlot,
    StateVariable,
    freeze_params,
    unbind_params,
    unbind_variables,
)
from pz_named.named_axes import wrap
from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import Linear
from pz_toolshed import _safetensors_file
from pz_toolshed.saving import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointWriteError,
    load,
    resume,
    save,
    save_in_background,
    saved_steps,
)


def values(tree):
    return unbind_variables(tree, freeze=True)[1]


def model_with_state(seed=0):
    return Sequential([tm.mlp([2, 3, 2], seed=seed), tm.counter()])


@pytest.mark.smoke
def test_round_trip_into_another_model(tmp_path):
    model, other = model_with_state(0), model_with_state(1)
    model(tm.random_input(features=2))
    save(tmp_path, model)
    loaded = load(tmp_path, like=other)
    tm.assert_trees_close(values(loaded), values(model), atol=0)
    assert int(other.sublayers[1].count.value) == 0  # `like` does not change
    assert isinstance(loaded.sublayers[1].count, StateVariable)


DTYPES = [
    jnp.float32,
    jnp.bfloat16,
    jnp.float16,
    jnp.int8,
    jnp.uint32,
    jnp.bool_,
    jnp.complex64,
    jnp.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 3)])
def test_dtypes_and_shapes(tmp_path, dtype, shape):
    x = (jnp.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(dtype)
    save(tmp_path, [Parameter(label="x", value=x)])
    (got,) = load(tmp_path, like=[Parameter(label="x", value=jnp.zeros_like(x))])
    assert got.value.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(got.value), np.asarray(x))


def test_axis_order_and_position_in_the_tree_do_not_matter(tmp_path):
    x = tm.random_input(a=2, b=3)
    y = wrap(jnp.arange(24.0).reshape(2, 3, 4)).tag("p", "q", "r").untag("q")
    save(tmp_path, {"x": Parameter(label="x", value=x), "y": Parameter(label="y", value=y)})
    like = [
        Parameter(label="y", value=y.with_positional_prefix() * 0),
        Parameter(label="x", value=(x * 0).order_as("b", "a")),
    ]
    got_y, got_x = load(tmp_path, like=like)
    assert list(got_x.value.named_shape) == ["b", "a"]
    tm.assert_trees_close(got_x.value, x, atol=0)
    np.testing.assert_array_equal(
        got_y.value.tag("q").unwrap("p", "q", "r"), y.tag("q").unwrap("p", "q", "r")
    )


@pytest.mark.smoke
def test_trees_in_values_frozen_parameters_streams_and_keys(tmp_path):
    def make(seed):
        return {
            "cache": StateVariable((tm.random_input(seed, a=2), {"n": 3 * seed}), label="cache"),
            "frozen": freeze_params(tm.mlp([2, 2], seed=seed)),
            "stream": tm.stream(seed),
            "key": jax.random.key(seed),
            "legacy": jax.random.PRNGKey(seed),
            "auto": StateVariable(jnp.ones(2) * seed),
        }

    one = make(1)
    one["stream"].next_key()
    save(tmp_path, one)
    got = load(tmp_path, like=make(2))
    tm.assert_trees_close(got["cache"].freeze(), one["cache"].freeze(), atol=0)
    tm.assert_trees_close(got["frozen"], one["frozen"], atol=0)
    assert got["stream"].next_key() == one["stream"].next_key()
    assert got["key"] == one["key"]
    assert (got["legacy"] == one["legacy"]).all()
    np.testing.assert_array_equal(got["auto"].value, [1, 1])
    assert got["cache"].value[1]["n"].weak_type


def test_slots_are_filled(tmp_path):
    model = tm.mlp([2, 3])
    save(tmp_path, model)
    slots, _ = unbind_params(model)
    loaded = load(tmp_path, like=slots)
    x = tm.random_input(features=2)
    tm.assert_trees_close(loaded(x), model(x), atol=0)
    bare = load(tmp_path, like=slots, allow_missing=True)
    assert not [p for p in unbind_params(bare)[1] if isinstance(p, ParameterSlot)]


def test_the_files_are_ordinary_safetensors_files_with_axis_names(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy")
    model = tm.mlp([2, 3])
    path = save(tmp_path, model)
    tensors = numpy_format.load_file(path)
    assert set(tensors) == {"mlp/Affine_0/AddBias.bias", "mlp/Affine_0/Linear.weights"}
    np.testing.assert_array_equal(
        tensors["mlp/Affine_0/Linear.weights"],
        model.sublayers[0].sublayers[0].weights.value.data_array,
    )
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        assert '"axes": {"features": 2, "features_out": 3}' in file.metadata()["entries"]
    numpy_format.save_file({"a": np.arange(3)}, tmp_path / "other.safetensors")
    opened = _safetensors_file.read_header(tmp_path / "other.safetensors")
    np.testing.assert_array_equal(opened.read("a"), np.arange(3))


# --- steps -----------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_steps_retention_and_resume(tmp_path):
    run = tmp_path / "run"
    model = tm.mlp([2, 2])
    assert saved_steps(run) == []
    assert resume(run, model) is model
    for _ in range(3):
        save(run, model)
    assert saved_steps(run) == [2]
    for step in (5, 6, 7, 7):
        save(run, model, step=step, keep=3)
    assert saved_steps(run) == [5, 6, 7]
    load(run, model, step=5)
    assert resume(run, model) is not model
    with pytest.raises(ValueError, match="step 3 is below the last saved step 7"):
        save(run, model, step=3)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        save(run, model, keep=0)
    with pytest.raises(ValueError, match=r"no backend 'orbx'.*safetensors, orbax"):
        save(run, model, backend="orbx")
    with pytest.raises(ValueError, match=r"no array in this Sequential.*bind_variables"):
        save(run, unbind_params(model)[0])
    assert saved_steps(run) == [5, 6, 7]
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4.*\[5, 6, 7\]"):
        load(run, model, step=4)
    with pytest.raises(FileNotFoundError, match=r"step 4 was asked for, but .*07\.safetensors"):
        load(run / "step_0000000007.safetensors", model, step=4)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        load(tmp_path / "nowhere", model)


def test_resumed_training_is_bit_identical(tmp_path):
    optax = pytest.importorskip("optax")
    from pz_toolshed.basic_training import StatefulTrainer

    def loss(model, rng, state, x):
        noise = jax.random.normal(rng, (2,))
        return ((model(x).unwrap("features") + noise) ** 2).mean(), state + 1, {}

    def build():
        return StatefulTrainer.build(
            root_rng=tm.key(5),
            model=model_with_state(),
            optimizer_def=optax.adam(0.1),
            loss_fn=loss,
            initial_loss_fn_state=0,
        )

    x = tm.random_input(features=2)
    whole, first = build(), build()
    for _ in range(6):
        whole.step(x=x)
    for _ in range(3):
        first.step(x=x)
    save(tmp_path, first, step=3)
    second = resume(tmp_path, build())
    assert int(second.state.value.step) == 3
    for _ in range(3):
        second.step(x=x)
    tm.assert_trees_close(values(second), values(whole), atol=0)
    # The model alone comes out of the training checkpoint too.
    loaded = load(tmp_path, model_with_state(1), allow_surplus=True)
    tm.assert_trees_close(values(loaded), values(first.model), atol=0)


# --- orbax -----------------------------------------------------------------------------------------


def test_the_orbax_backend_saves_and_loads_the_same_entries(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    one, other = ([model_with_state(seed), tm.stream(seed)] for seed in (1, 2))
    one[1].next_key()
    pending = save_in_background(tmp_path, one, step=3)
    assert pending.wait().name == "3"
    save(tmp_path, one, step=4, keep=1, backend="orbax")
    assert saved_steps(tmp_path) == [4]
    loaded = resume(tmp_path, other)
    tm.assert_trees_close(values(loaded), values(one), atol=0)
    assert loaded[1].next_key() == one[1].next_key()
    with pytest.raises(CheckpointMismatchError, match=r"orbax/4 .*\n.*missing.*'more/Affine"):
        load(tmp_path, [*other, tm.mlp([2, 2], name="more")])
    part = load(tmp_path, other[:1], allow_surplus=True)
    tm.assert_trees_close(values(part), values(one[:1]), atol=0)


def test_training_that_donates_its_buffers_goes_on_while_orbax_saves(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    optax = pytest.importorskip("optax")
    from pz_toolshed.basic_training import StatefulTrainer

    def loss(model, rng, state, x):
        return (model(x).unwrap("features") ** 2).mean(), state, {}

    model, x = tm.mlp([2, 2]), tm.random_input(features=2)
    trainer = StatefulTrainer.build(tm.key(), model, optax.sgd(0.1), loss, donate_states=True)
    trainer.step(x=x)
    before = jax.tree.map(np.array, values(model))
    pending = save_in_background(tmp_path, model)
    trainer.step(x=x)
    pending.wait()
    tm.assert_trees_close(values(load(tmp_path, model)), before, atol=0)
    assert not np.allclose(jax.tree.leaves(values(model))[0], jax.tree.leaves(before)[0])


def test_failures_of_orbax_are_our_errors(tmp_path, monkeypatch):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    tree = [Parameter(label="x", value=jnp.ones(3))]
    path = save(tmp_path, tree, step=1, keep=3, backend="orbax")
    with pytest.raises(ValueError, match=r"step 1 is saved in .* already.*step=2"):
        save(tmp_path, tree, step=1, keep=3, backend="orbax")
    second = save(tmp_path, tree, step=2, keep=3, backend="orbax")  # the repair
    (second / "description" / "metadata").write_text("{damaged")
    with pytest.raises(CheckpointFormatError, match=r"orbax/2 is damaged.*Load another step"):
        load(tmp_path, tree)
    (data,) = (path / "arrays" / "d").iterdir()
    whole = data.read_bytes()
    data.write_bytes(whole[:5])
    with pytest.raises(CheckpointFormatError, match=r"orbax/1 is damaged"):
        load(tmp_path, tree, step=1)
    data.write_bytes(whole)
    tm.assert_trees_close(values(load(tmp_path, tree, step=1)), values(tree), atol=0)  # the repair

    def fail(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: no space left")

    for call in ("save", "wait_until_finished"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.CheckpointManager, call, fail)
            with pytest.raises(
                CheckpointWriteError, match=r"orbax/3: RESOURCE_EXHAUSTED.*Make room"
            ):
                save(tmp_path / call, tree, step=3, backend="orbax")
    with pytest.raises(CheckpointWriteError, match="Not a directory"):
        save(data, tree, backend="orbax")


# --- what does not fit -----------------------------------------------------------------------------


def test_all_differences_are_reported_with_near_misses(tmp_path):
    def linear(name, **axes):
        return Linear.from_config(name, tm.key(), axes, {"out": 3})

    save(tmp_path, [linear("a/first", x=2), linear("a/second", x=2), linear("a/third", x=2)])
    like = [linear("a/first", y=2), linear("a/secnd", x=2), linear("a/third", x=4)]
    with pytest.raises(CheckpointMismatchError) as info:
        load(tmp_path, like)
    error = info.value
    assert error.missing == ["a/secnd.weights"]
    assert error.surplus == ["a/second.weights"]
    assert error.mismatching["a/first.weights"] == ("float32{x:2, out:3}", "float32{y:2, out:3}")
    assert "different: 'a/third.weights' was saved as float32{x:2, out:3}" in str(error)
    assert "'a/secnd.weights' (the checkpoint has 'a/second.weights')" in str(error)


def test_differences_can_be_allowed(tmp_path):
    model = tm.mlp([2, 3])
    save(tmp_path, model)
    more = Sequential([model, tm.mlp([3, 2], name="more")])
    with pytest.raises(CheckpointMismatchError, match="missing in the checkpoint: 'more/"):
        load(tmp_path, more)
    kept = load(tmp_path, more, allow_missing=True)
    tm.assert_trees_close(values(kept), values(more), atol=0)
    save(tmp_path, more)
    with pytest.raises(CheckpointMismatchError, match="not in `like`: 'more/"):
        load(tmp_path, model)
    tm.assert_trees_close(values(load(tmp_path, model, allow_surplus=True)), values(model), atol=0)
    half = [Parameter(label="x", value=jnp.ones(2, jnp.bfloat16))]
    save(tmp_path / "half", half)
    whole = [Parameter(label="x", value=jnp.zeros(2))]
    with pytest.raises(CheckpointMismatchError, match=r"bfloat16\{2\}, `like` has float32\{2\}"):
        load(tmp_path / "half", whole)
    assert load(tmp_path / "half", whole, cast=True)[0].value.dtype == jnp.float32


def test_two_arrays_with_one_name_are_refused(tmp_path):
    twice = [Parameter(label="x", value=1.0).freeze(), Parameter(label="x", value=2.0).freeze()]
    with pytest.raises(ValueError, match="two different arrays would be saved as 'x'"):
        save(tmp_path, twice)


DAMAGES = ["short", "header", "length", "empty", "entries", "list", "tensor", "foreign", "version"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(tmp_path, damage):
    model = tm.mlp([2, 2])
    path = save(tmp_path, model)
    data = path.read_bytes()
    path.write_bytes(
        {
            "short": data[:-5],
            "header": data[:8] + b"x" * 20 + data[28:],
            "length": b"\xff" * 8 + data[8:],
            "empty": b"",
            "entries": data.replace(b'"entries"', b'"entriez"'),
            "list": data.replace(b'"entries":"{', b'"entries":"['),
            "tensor": data.replace(
                b'"mlp/Affine_0/AddBias.bias":{', b'"mlp/Affine_0/AddBias.biaz":{'
            ),
            "foreign": data.replace(b"pz_toolshed.saving", b"something.else.xyz"),
            "version": data.replace(b'"version":"1"', b'"version":"9"'),
        }[damage]
    )
    rule = {"foreign": "was not written by", "version": "format version 9"}.get(damage, "damaged")
    with pytest.raises(CheckpointFormatError, match=rf"step_0000000000.*{rule}"):
        load(tmp_path, model)


# --- failing systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_failing_system_calls_lose_nothing(tmp_path, monkeypatch, code):
    old, new = tm.mlp([2, 2], seed=0), tm.mlp([2, 2], seed=1)
    save(tmp_path, old)
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "close")}
    calls = []

    def run(fail_at):
        calls.clear()

        def wrapped(name):
            def call(*args, **kwargs):
                calls.append(name)
                if len(calls) - 1 == fail_at:
                    if name == "close":
                        real[name](*args)
                    raise OSError(code, os.strerror(code))
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(_safetensors_file.os, name, wrapped(name))
            save(tmp_path, new)

    run(None)
    total = len(calls)
    assert total >= 9  # open, writes, fsync, close, rename, and the folder's open, fsync, close
    for fail_at in range(total):
        save(tmp_path, old)
        with pytest.raises(CheckpointWriteError, match=os.strerror(code)) as info:
            run(fail_at)
        assert info.value.errno == code
        is_complete = "replace" in calls[:fail_at]  # only the folder's fsync is left then
        tm.assert_trees_close(
            values(load(tmp_path, old)), values(new if is_complete else old), atol=0
        )
        assert not list(tmp_path.glob(".*"))
    tm.assert_trees_close(values(load(tmp_path, old)), values(new), atol=0)


def test_killed_at_any_moment_the_old_or_the_new_checkpoint_is_left(tmp_path):
    points = int(os.environ.get("PZ_KILL_POINTS", "8"))
    script = pathlib.Path(__file__).parent / "_helpers" / "killed_saver.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path, str(points)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == points
    assert {"open", "write"} < {said for _, said, _ in lines}  # each was inside `save`
    seeds = [seed for *_, seed in lines]
    assert seeds == sorted(seeds)  # the old one up to the rename, then the new one
    assert {seeds[0], seeds[-1]} == {"1.0", "2.0"}


def test_partial_writes_are_continued_and_leftovers_removed(tmp_path, monkeypatch):
    model = tm.mlp([2, 2])
    real = os.write
    monkeypatch.setattr(_safetensors_file.os, "write", lambda fd, data: real(fd, data[:7]))
    (tmp_path / ".step_0000000000.safetensors.999999999.tmp").write_bytes(b"left by a killed run")
    save(tmp_path, model)
    tm.assert_trees_close(values(load(tmp_path, model)), values(model), atol=0)
    assert len(list(tmp_path.iterdir())) == 1


def test_dtypes_that_the_format_lacks_are_named(tmp_path):
    with pytest.raises(TypeError, match="'x' has dtype int4"):
        save(tmp_path, [Parameter(label="x", value=jnp.zeros(2, jnp.int4))])
