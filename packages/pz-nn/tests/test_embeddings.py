import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, check_gradients, draw, named, raises, raw

from pz_core.variables import Parameter, freeze_variables
from pz_named import named_axes as nx
from pz_nn.embeddings import EmbeddingDecode, EmbeddingLookup, EmbeddingTable


def table(sizes=None, vocab_size=5, dtype=jnp.float32):
    sizes = sizes or {"foo": 2, "bar": 3}
    return freeze_variables(
        EmbeddingTable.from_config(
            "E", jax.random.key(0), vocab_size, sizes, initializer=draw, dtype=dtype
        )
    )


@pytest.mark.smoke
def test_table_vector(key):
    made = EmbeddingTable.from_config("E", key, 2, {"e": 3})
    assert made.embeddings.label == "E.embeddings"
    assert axis_order(made.embeddings.value) == ["vocabulary", "e"]
    expected = [[-0.3190307, 1.1788566, -1.4068245], [0.4954273, -0.2297637, 0.0158927]]
    assert_close(raw(made.embeddings.value), expected, 2e-7)
    with pytest.raises(TypeError):
        made(1)
    with raises(ValueError, "EmbeddingTable.from_config('E')", "'e'", "{'e': 3}"):
        EmbeddingTable.from_config("E", key, 2, {"e": 3}, vocabulary_axis="e")


@pytest.mark.smoke
def test_lookup_and_decode_with_two_embedding_axes():
    t = table()
    ids = nx.wrap(jnp.array([[0, 4, 2], [1, -1, 3]]), "batch", "seq")
    values = raw(t.embeddings.value)
    y = EmbeddingLookup(t)(ids)
    assert axis_order(y) == ["foo", "bar", "batch", "seq"]
    assert_close(raw(y, "batch", "seq", "foo", "bar"), values[raw(ids).astype(int)])
    last = EmbeddingLookup(t, embedding_axes_last=True)(ids)
    assert axis_order(last) == ["batch", "seq", "foo", "bar"]
    assert_close(raw(last), values[raw(ids).astype(int)])
    logits = EmbeddingDecode(t)(y)
    assert axis_order(logits) == ["batch", "seq", "vocabulary"]
    assert_close(raw(logits), np.einsum("bsfg,vfg->bsv", raw(last), values))


def test_lookup_of_other_ids():
    t = table({"e": 3})
    values = raw(t.embeddings.value)
    assert_close(raw(EmbeddingLookup(t)(3)), values[3])
    positional = EmbeddingLookup(t)(jnp.array([1, 2]))
    assert positional.positional_shape == (2,)
    assert_close(raw(positional), values[[1, 2]])
    over_vocabulary = EmbeddingLookup(t)(nx.arange("vocabulary", 5))
    assert_close(raw(over_vocabulary, "vocabulary", "e"), values)
    assert EmbeddingLookup(t)(nx.zeros({"seq": 0}, jnp.int32)).named_shape == {"e": 3, "seq": 0}
    assert_close(raw(EmbeddingLookup(t)(nx.wrap(jnp.uint8(2)))), values[2])


@pytest.mark.smoke
def test_ids_outside_the_table():
    t = table({"e": 3})
    lookup = EmbeddingLookup(t)
    for bad in (5, -6):
        with raises(IndexError, "[-5, 4]", f"{bad}"):
            lookup(nx.wrap(jnp.array([0, bad]), "seq"))
    traced = jax.jit(lambda la, i: la(i))(lookup, nx.wrap(jnp.array([0, 5, -6, -5, 4]), "seq"))
    isnan = np.isnan(raw(traced, "seq", "e"))
    assert (isnan == np.array([False, True, True, False, False])[:, None]).all()


def test_a_table_stored_in_another_order():
    values = named(0, {"e": 3, "vocabulary": 5})
    t = EmbeddingTable(Parameter(label="t", value=values).freeze(), "vocabulary")
    y = EmbeddingLookup(t)(nx.wrap(jnp.array([4, 1]), "seq"))
    assert_close(raw(y, "seq", "e"), raw(values).T[[4, 1]])
    assert_close(raw(EmbeddingDecode(t)(y)), raw(values).T[[4, 1]] @ raw(values))


def test_decode_errors():
    t = table({"e": 3})
    with raises(ValueError, "'e'"):
        EmbeddingDecode(t)(named(0, {"f": 3}))
    with raises(ValueError, "e", "4"):
        EmbeddingDecode(t)(named(0, {"e": 4}))
    with raises(ValueError, "vocabulary", "{'e': 3, 'vocabulary': 5}"):
        EmbeddingDecode(t)(named(0, {"e": 3, "vocabulary": 5}))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype):
    t = table({"e": 16}, dtype=dtype)
    y = EmbeddingLookup(t)(nx.arange("seq", 5))
    assert y.dtype == dtype
    assert (raw(y, "seq", "e") == raw(t.embeddings.value)).all()
    logits = EmbeddingDecode(t)(y)
    assert logits.dtype == dtype
    exact = raw(t.embeddings.value) @ raw(t.embeddings.value).T
    assert_close(raw(logits, "seq", "vocabulary"), exact, 5e-2)
    precise = EmbeddingDecode(t, preferred_element_type=jnp.float32)(y)
    assert precise.dtype == jnp.float32
    assert_close(raw(precise, "seq", "vocabulary"), exact, 1e-5)


def test_tied_weights_share_one_parameter(key):
    t = EmbeddingTable(
        Parameter(label="t", value=named(0, {"vocabulary": 3, "e": 2})), "vocabulary"
    )
    lookup, decode = EmbeddingLookup(t), EmbeddingDecode(t)
    t.embeddings.value = t.embeddings.value * 0
    assert (raw(decode(lookup(nx.arange("s", 3)))) == 0).all()


def test_gradients(float64):
    ids = nx.wrap(jnp.array([1, 1, 0]), "seq")

    def run(values):
        t = EmbeddingTable(
            Parameter(label="t", value=nx.wrap(values, "vocabulary", "e")).freeze(), "vocabulary"
        )
        return jnp.sin(EmbeddingDecode(t)(EmbeddingLookup(t)(ids)).unwrap("seq", "vocabulary"))

    check_gradients(run, np.random.default_rng(0).normal(size=(3, 2)))
