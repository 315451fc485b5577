"""Exchange with other libraries, text, placement on devices."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
from pz_named import _text


@pytest.mark.smoke
def test_dlpack_round_trip():
    x = nx.wrap(jnp.arange(6.0).reshape(2, 3), "row", "column")
    out = np.from_dlpack(nx.to_dlpack(x, "column", "row"))
    np.testing.assert_array_equal(out, np.arange(6.0).reshape(2, 3).T)
    back = nx.from_dlpack(out.copy(), "column", "row")
    np.testing.assert_array_equal(back.unwrap("row", "column"), x.data_array)


def test_xarray_round_trip():
    xarray = pytest.importorskip("xarray")
    x = nx.wrap(jnp.arange(6.0).reshape(2, 3), "row", "column")
    array = nx.to_xarray(x, coords={"row": [10, 20]}, name="height")
    assert array.dims == ("row", "column")
    np.testing.assert_array_equal(array.sel(row=20), [3, 4, 5])
    back = nx.from_xarray(array)
    assert back.named_shape == x.named_shape
    np.testing.assert_array_equal(back.data_array, x.data_array)
    with pytest.raises(TypeError, match="DataArray is needed; this is Dataset"):
        nx.from_xarray(xarray.Dataset())


@pytest.mark.smoke
def test_xarray_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray"):
        nx.to_xarray(nx.ones({"a": 1}))


@pytest.mark.smoke
def test_text_fits_a_line_and_works_under_tracing():
    small, large = nx.arange("a", 3), nx.ones({"batch": 1000, "feature": 1000})
    assert repr(small) == "<NamedArray int32(| a:3) [0,1,2] (wrapping jax.Array)>"
    assert repr(large) == "<NamedArray float32(| batch:1000, feature:1000) (wrapping jax.Array)>"
    assert repr(large.untag("batch")).startswith("<NamedArrayView float32(1000 | feature:1000)")
    texts = []
    jax.jit(lambda v: texts.append(repr(v)) or v)(small)
    jax.vmap(lambda v: texts.append(repr(v)) or v)(large.untag("batch").with_positional_prefix())
    assert all("Tracer" in text for text in texts)
    assert "invalid" in repr(jax.tree_util.tree_map(lambda _: None, small))
    assert "key<fry>" in repr(nx.random_split(jax.random.key(0), {"a": 2}))
    assert "numpy.ndarray" in repr(jax.device_get(small))
    assert "ShapeDtypeStruct" in repr(jax.eval_shape(lambda: small))


@pytest.mark.smoke
def test_text_of_a_large_array_does_not_copy_it(monkeypatch):
    class Recorder:
        ndarray = np.ndarray

        def asarray(self, data):
            copied.append(data.shape)
            return np.asarray(data)

        array2string = staticmethod(np.array2string)

    copied = []
    monkeypatch.setattr(_text, "np", Recorder())
    repr(nx.ones({"a": 10_000}))
    assert copied == []
    repr(nx.ones({"a": 2}))  # the guard can fail
    assert copied == [(2,)]


ON_EIGHT_DEVICES = textwrap.dedent("""
    import jax, jax.numpy as jnp, numpy as np, functools
    jax.config.update("jax_num_cpu_devices", 8)
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import pz_named as nx

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = nx.wrap(jnp.arange(64.0).reshape(8, 8), "batch", "feature")
    placed = jax.device_put(x, NamedSharding(mesh, P("data", "model")))
    assert nx.sharding_of(x) == {"batch": (), "feature": ()}
    assert nx.sharding_of(placed) == {"batch": ("data",), "feature": ("model",)}
    assert nx.sharding_of(placed.untag("batch")) == {"feature": ("model",), 0: ("data",)}
    both = jax.device_put(x, NamedSharding(mesh, P(("data", "model"))))
    assert nx.sharding_of(both) == {"batch": ("data", "model"), "feature": ()}
    total = jax.jit(lambda v: nx.sum(v * v, "feature"))(placed)
    np.testing.assert_allclose(total.unwrap("batch"), (x.data_array ** 2).sum(1))
    assert nx.sharding_of(total)["batch"] == ("data",)
    assert "wrapping jax.Array" in repr(placed)

    local = jax.shard_map(
        lambda v: nx.nmap(lambda u: jax.lax.psum(u, "data"))(nx.sum(v, "feature")),
        mesh=mesh, in_specs=P("data"), out_specs=P(), axis_names={"data"}, check_vma=False,
    )
    part = nx.wrap(jnp.ones((8, 8)), "batch", "feature").untag("batch").with_positional_prefix()
    summed = jax.jit(local)(part)
    np.testing.assert_allclose(summed.data_array, np.full(2, 32.0))
    donated = jax.jit(lambda v: v + 1, donate_argnums=0)(placed)
    assert placed.data_array.is_deleted() and nx.sharding_of(donated) == {
        "batch": ("data",), "feature": ("model",)}
    print("fine")
""")


def test_sharding_by_name_shard_map_and_donation():
    program = ON_EIGHT_DEVICES
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip().endswith("fine"), done.stderr


@pytest.mark.smoke
def test_import_brings_nothing_of_weight():
    program = "import sys, pz_named; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    plain = subprocess.run(
        [sys.executable, "-c", program.replace("pz_named", "jax")],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    extra = set(ours.stdout.split()) - set(plain.stdout.split())
    assert extra <= {"pz_named"}
    # The guard can fail: another import shows.
    other = subprocess.run(
        [sys.executable, "-c", "import tomllib; " + program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tomllib" in set(other.stdout.split()) - set(plain.stdout.split())
