"""Named arrays: every form of the summary, and treescope's pictures of them."""

import collections
import dataclasses
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from treescope.external import jax_support, numpy_support

import pz_named as nx
import pz_viz
from pz_viz import _statistics
from pz_viz._arrays import NamedArrayAdapter, shape_text, summary_and_content
from pz_viz._statistics import statistics_text, values_text
from pz_viz.host_copies import to_host, unreadable_reason


def text_of(value, **kwargs):
    return treescope.render_to_text(value, **kwargs)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "make, expected",
    [
        (
            lambda: nx.wrap(jnp.arange(48).reshape(2, 6, 4)).tag("row", "p", "col").untag("p") - 8,
            "<NamedArrayView int32(6 | row:2, col:4) [≥-8, ≤39] zero:1 nonzero:47 (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jnp.ones((3, 5, 7))),
            "<NamedArray float32(3, 5, 7 |) ≈1.0 ±0.0 [≥1.0, ≤1.0] nonzero:105 (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jnp.arange(4)),
            "<NamedArray Array([0, 1, 2, 3], dtype=int32) (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jnp.ones((0, 3))).tag("a", "b"),
            "<NamedArray float32(| a:0, b:3) empty (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jnp.array([True, False, True])).tag("a"),
            "<NamedArray bool(| a:3) true:2 false:1 (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jnp.array([1, jnp.nan, jnp.inf, -jnp.inf])).tag("a"),
            "<NamedArray float32(| a:4) ≈1.0 ±0.0 [≥-inf, ≤inf] nonzero:4 nan:1 inf:1 -inf:1 (wrapping jax.Array)>",
        ),
        (
            lambda: nx.NamedArray(collections.OrderedDict(a=3), np.ones(3)),
            "<NamedArray float64(| a:3) ≈1.0 ±0.0 [≥1.0, ≤1.0] nonzero:3 (wrapping numpy.ndarray)>",
        ),
        (
            lambda: nx.wrap(jnp.ones((2,))).tag(("a", 1)),
            "<NamedArray float32(| ('a', 1):2) ≈1.0 ±0.0 [≥1.0, ≤1.0] nonzero:2 (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jax.random.key(0)[None]).tag("a"),
            "<NamedArray key<fry>(| a:1) (wrapping jax.Array)>",
        ),
        (
            lambda: nx.wrap(jnp.full((2,), 100_000)).tag("a"),
            "<NamedArray int32(| a:2) [≥100_000, ≤100_000] nonzero:2 (wrapping jax.Array)>",
        ),
    ],
)
def test_closed_summary(make, expected):
    assert text_of(make()) == expected


def test_abstract_traced_deleted_and_large_arrays_say_so():
    abstract = jax.eval_shape(lambda: nx.wrap(jnp.ones((2, 3))).tag("a", "b"))
    assert text_of(abstract) == "<NamedArray float32(| a:2, b:3) (wrapping ShapeDtypeStruct)>"
    deleted = nx.wrap(jnp.ones((2, 3)) + 0).tag("a", "b")
    deleted.data_array.delete()
    assert " - deleted!" in text_of(deleted)
    large = nx.wrap(jnp.ones((1000, 200))).tag("a", "b")
    assert "too large to summarize" in text_of(large)
    seen = []
    jax.make_jaxpr(lambda x: seen.append(text_of(x)) or x)(nx.wrap(jnp.ones(2)).tag("a"))
    assert seen == ["<NamedArray float32(| a:2) (wrapping DynamicJaxprTracer)>"]


def test_bare_arrays_without_values_say_why():
    assert text_of(jnp.zeros((0, 3))) == "<jax.Array float32(0, 3) empty>"
    assert text_of(jax.random.split(jax.random.key(0), 0)) == "<jax.Array key<fry>(0,) empty>"
    gone = jnp.ones(2) + 0
    gone.delete()
    assert text_of(gone) == "<jax.Array float32(2,) - deleted!>"
    donated = jnp.ones(2) + 0
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated)
    assert text_of([donated]) == "[<jax.Array float32(2,) - deleted!>]"
    seen = []
    jax.make_jaxpr(lambda x: seen.append(text_of(x)) or x)(jnp.ones(2))
    assert "Tracer" in seen[0]


def test_multi_host_arrays_say_so_and_are_not_read():
    array = unittest.mock.NonCallableMock(spec=type(jnp.zeros(())))
    array.is_deleted.return_value = False
    array.is_fully_addressable = array.is_fully_replicated = False
    assert unreadable_reason(array) == "multi-host"
    assert statistics_text(array) == " - multi-host array!"
    with pytest.raises(pz_viz.HostCopyError, match="multi-host"):
        to_host(array, 10, "weights")


def test_drawing_inside_a_traced_function_adds_no_equation():
    outside = nx.wrap(jnp.ones((4, 4))).tag("a", "b")

    def draw(x):
        text_of([outside, x])
        return x

    jaxpr = jax.make_jaxpr(draw)(outside)
    assert not jaxpr.eqns

    def compute(x):  # the guard can fail
        _ = x.data_array.sum()
        return x

    assert jax.make_jaxpr(compute)(outside).eqns


def test_donated_buffers_can_be_drawn():
    x = nx.wrap(jnp.ones((8, 8))).tag("a", "b")
    jax.jit(lambda y: y + 1, donate_argnums=0)(x)
    assert "NamedArray float32(| a:8, b:8)" in text_of(x)


def test_open_form_shows_fields_and_the_summary_as_a_comment():
    x = nx.wrap(jnp.arange(48).reshape(2, 6, 4)).tag("row", "p", "col").untag("p")
    part = treescope.active_renderer.get().to_foldable_representation(x)
    [foldable] = part.renderable.foldables_in_this_part()
    foldable.set_expand_state(treescope.rendering_parts.ExpandState.EXPANDED)
    lines = treescope.lowering.render_to_text_as_root(part.renderable).splitlines()
    assert lines[:4] == [
        "NamedArrayView(  # int32(6 | row:2, col:4) [≥0, ≤47] zero:1 nonzero:47",
        "  data_shape=(2, 6, 4),",
        "  data_axis_for_logical_axis=(1,),",
        "  data_axis_for_name={'row': 0, 'col': 2},",
    ]
    assert lines[-1] == ")"


def test_roundtrip_form_is_a_constructor():
    x = nx.wrap(jnp.ones((2, 3))).tag("a", "b")
    text = text_of(x, roundtrip_mode=True)
    assert "NamedArray(named_axes=collections.OrderedDict({'a': 2, 'b': 3}), data_array=" in text


def test_invalid_arrays_fall_back_to_their_fields():
    x = nx.wrap(jnp.ones((2, 3))).tag("a", "b")
    broken = dataclasses.replace(x, data_array=jnp.ones((5,)))
    assert "named_axes" in text_of(broken)
    assert not NamedArrayAdapter().should_autovisualize(broken)
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        assert "named_axes" in text_of(broken)


def test_summary_agrees_with_treescopes_own():
    """The oracle is treescope's summary of the same data."""
    rng = np.random.default_rng(0)
    for data in (
        rng.normal(size=(7, 5)).astype(np.float32),
        rng.integers(-5, 5, size=(4, 4)),
        rng.normal(size=(3,)) > 0,
        np.array([np.nan, 1.5, -np.inf], np.float32),
    ):
        array = jnp.asarray(data)
        x = nx.wrap(array).tag(*"ab"[: array.ndim])
        ours, _ = summary_and_content(x)
        theirs = jax_support.summarize_array_data(array)
        assert ours == shape_text(x) + theirs


ODD = [(dtype, shape) for dtype in ("int32", "float32", "bool") for shape in ((13, 9),)]


@pytest.mark.parametrize("dtype, shape", ODD)
@pytest.mark.parametrize("edges", [(None, None), (2, None), (None, 3), (2, 3)])
def test_adapter_agrees_with_numpys(dtype, shape, edges):
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    x = nx.wrap(jnp.asarray(data)).tag("rows", "columns")
    ours, mask = NamedArrayAdapter().get_array_data_with_truncation(x, None, edges)
    theirs, their_mask = numpy_support.NumpyArrayAdapter().get_array_data_with_truncation(
        data, None, edges
    )
    np.testing.assert_array_equal(np.where(their_mask, ours, 0), np.where(their_mask, theirs, 0))
    np.testing.assert_array_equal(mask, their_mask)


def test_adapter_axis_infos_follow_the_data():
    x = nx.wrap(jnp.zeros((2, 3, 4))).tag("a", "b", "c").untag("c", "a")
    infos = NamedArrayAdapter().get_axis_info_for_array_data(x)
    named = treescope.ndarray_adapters.NamedPositionlessAxisInfo
    positional = treescope.ndarray_adapters.PositionalAxisInfo
    assert infos == (positional(1, 2), named("b", 3), positional(0, 4))


def test_masks_are_aligned_by_name_and_broadcast():
    x = nx.wrap(jnp.arange(6).reshape(2, 3)).tag("a", "b")
    keep = nx.wrap(jnp.array([True, False, True])).tag("b")
    _, mask = NamedArrayAdapter().get_array_data_with_truncation(x, keep, (None, None))
    np.testing.assert_array_equal(mask, [[True, False, True]] * 2)
    turned = nx.wrap(jnp.array([[True, False], [True, True], [False, True]])).tag("b", "a")
    _, mask = NamedArrayAdapter().get_array_data_with_truncation(x, turned, (None, None))
    np.testing.assert_array_equal(mask, [[True, True, False], [False, True, True]])


def test_a_mask_that_does_not_fit_is_an_error():
    x = nx.wrap(jnp.arange(6).reshape(2, 3)).tag("a", "b")
    adapter = NamedArrayAdapter()
    with pytest.raises(ValueError, match=r"has the axes \['c'\], which the array lacks"):
        adapter.get_array_data_with_truncation(x, nx.wrap(jnp.ones(2)).tag("c"), (None, None))
    with pytest.raises(ValueError, match=r"shape \(3,\) does not broadcast .* shape \(2,\)"):
        adapter.get_array_data_with_truncation(x.untag("a"), np.ones(3, bool), (None, None))


def test_render_array_and_autovisualizer_accept_named_arrays():
    x = nx.wrap(jnp.arange(60.0).reshape(6, 10)).tag("a", "b")
    figure = treescope.render_array(x, rows=["a"], columns=["b"], truncate=True)
    assert "Arrayviz" in treescope.lowering.render_to_text_as_root(figure.treescope_part)
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        html = treescope.render_to_html([x], compressed=False)
    assert "arrayviz" in html
    numpy_backed = nx.NamedArray(collections.OrderedDict(a=6), np.arange(6.0))
    assert "Arrayviz" in treescope.lowering.render_to_text_as_root(
        treescope.render_array(numpy_backed).treescope_part
    )


@pytest.mark.parametrize("shape", [(3,), (40, 50), (2000,), (3, 20, 30), (0, 3)])
def test_values_agree_with_the_repr(shape):
    array = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    assert values_text(array).replace(" ", "") == repr(array).replace(" ", "")
    text = []
    jax.make_jaxpr(lambda x: text.append(values_text(array)) or x)(1.0)
    assert text == [values_text(array)]
    assert values_text(jax.random.split(jax.random.key(0), 2000)).startswith("2_000 elements")


def test_large_arrays_are_summarised_where_they_lie(monkeypatch):
    array = jnp.arange(200_000.0)
    with jax_support.summarization_threshold.set_scoped({"default": None}):
        told = statistics_text(array)
        monkeypatch.setattr(_statistics, "HOST_SUMMARY_BUDGET", 10**6)
        assert statistics_text(array) == told
    assert told == " ≈1e+05 ±5.8e+04 [≥0.0, ≤2e+05] zero:1 nonzero:199_999"


def test_streaming_placeholder_reads_no_data():
    x = nx.wrap(jnp.ones((2, 3))).tag("a", "b")
    assert summary_and_content(x, inspect_device_data=False) == ("float32(| a:2, b:3)", "jax.Array")
    with treescope.lowering.collecting_deferred_renderings() as deferred:
        part = treescope.active_renderer.get().to_foldable_representation(x)
    assert len(deferred) == 2  # the summary, and the array inside
    assert "≈" not in treescope.lowering.render_to_text_as_root(part.renderable)


def test_a_small_repr_is_looked_for_only_in_small_arrays(monkeypatch):
    large = nx.wrap(jnp.ones((1000,)))
    monkeypatch.setattr(
        type(large.data_array),
        "__repr__",
        lambda _: pytest.fail("copied the whole array"),
        raising=True,
    )
    assert summary_and_content(large)[0].startswith("float32(1000 |)")
