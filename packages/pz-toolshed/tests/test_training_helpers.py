import csv
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from pz_core.selectors import select
from pz_core.variables import ParameterValue, freeze_params, unbind_params
from pz_named.named_axes import wrap
from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import AddBias, Linear
from pz_toolshed import losses, mixed_precision, trainable
from pz_toolshed.parameter_averaging import ExponentialMovingAverage
from pz_toolshed.saving import load, save

optax = pytest.importorskip("optax")
pytest.importorskip("tqdm")
from pz_toolshed import metric_writers, optimizers, training_loop  # noqa: E402
from pz_toolshed.basic_training import StatefulTrainer  # noqa: E402
from pz_toolshed.training_loop import EarlyStopping, evaluate, evaluating, every, fit  # noqa: E402

X = tm.random_input(features=2)


def mean_square(model, rng, state, x, scale=1.0):
    out = model(x).unwrap("features")
    return scale * (out**2).mean(), state, {"size": jnp.abs(out).max(), "vector": out}


def trainer_of(model, optimizer=None, loss=mean_square):
    return StatefulTrainer.build(tm.key(0), model, optimizer or optax.sgd(0.1), loss)


# --- losses ----------------------------------------------------------------------------------------


def reference_loss(logits, tokens, weights):
    """The definition, position by position, in float64."""
    logits = np.asarray(logits, np.float64)
    total = count = 0.0
    for b in range(tokens.shape[0]):
        for i in range(tokens.shape[1] - 1):
            row = logits[b, i] - logits[b, i].max()
            nll = math.log(np.exp(row).sum()) - row[tokens[b, i + 1]]
            total += weights[b, i] * nll
            count += weights[b, i]
    return total, count


@settings(max_examples=4)  # every axis order compiles anew
@given(st.integers(0, 10**6), st.just(2), st.sampled_from([1, 5]), st.permutations("bsv"))
def test_next_token_loss_equals_its_definition(seed, batch, length, order):
    keys = jax.random.split(tm.key(seed), 4)
    logits = 3 * jax.random.normal(keys[0], (batch, length, 7))
    tokens = np.asarray(jax.random.randint(keys[1], (batch, length), 0, 7))
    segments = np.sort(np.asarray(jax.random.randint(keys[2], (batch, length), 0, 3)))
    mask = np.asarray(jax.random.bernoulli(keys[3], 0.7, (batch, length)))
    names = {"b": "batch", "s": "seq", "v": "vocabulary"}
    named = wrap(logits).tag("batch", "seq", "vocabulary").order_as(*(names[c] for c in order))

    def tag(array):
        return wrap(jnp.asarray(array)).tag("batch", "seq")

    weights = (
        (segments[:, 1:] == segments[:, :-1])
        & (segments[:, 1:] != 0)
        & mask[:, 1:]
        & (tokens[:, 1:] != 3)
    )
    got = losses.next_token_loss(
        named, tag(tokens), segment_ids=tag(segments), loss_mask=tag(mask), pad_id=3
    )
    total, count = reference_loss(logits, tokens, weights)
    np.testing.assert_allclose(got.total, total, rtol=1e-4, atol=1e-4)
    assert got.count == count
    np.testing.assert_allclose(got.mean, total / max(count, 1), rtol=1e-4, atol=1e-4)


def test_packed_texts_are_counted_as_if_they_stood_alone():
    logits, tokens = jax.random.normal(tm.key(), (6, 5)), jnp.array([1, 2, 3, 0, 4, 2])

    def loss(rows, **kwargs):
        return losses.next_token_loss(
            wrap(logits[rows]).tag("seq", "vocabulary"), wrap(tokens[rows]).tag("seq"), **kwargs
        )

    packed = loss(slice(None), segment_ids=wrap(jnp.array([1, 1, 1, 2, 2, 0])).tag("seq"))
    alone = [loss(slice(0, 3)), loss(slice(3, 5))]
    np.testing.assert_allclose(packed.total, sum(a.total for a in alone), rtol=1e-6)
    assert packed.count == sum(a.count for a in alone) == 3


def test_masked_infinities_do_not_matter():
    tokens, mask = wrap(jnp.array([0, 1, 1])).tag("seq"), wrap(jnp.array([1, 1, 0])).tag("seq")

    def loss(logits):
        named = wrap(logits).tag("seq", "vocabulary")
        return losses.next_token_loss(named, tokens, loss_mask=mask).mean

    finite = jnp.array([[1.0, 2], [3, 0], [0, 0]])
    want = jax.value_and_grad(loss)(finite)
    for odd in (jnp.inf, jnp.nan):
        for position in (1, 2):  # masked; the last, which has no target
            got = jax.value_and_grad(loss)(finite.at[position, 0].set(odd))
            tm.assert_trees_close(got, want, atol=0)
    half = losses.next_token_loss(
        wrap(jnp.ones((3, 2), jnp.bfloat16)).tag("seq", "vocabulary"), tokens
    )
    assert half.total.dtype == jnp.float32
    assert math.isclose(half.mean, math.log(2), rel_tol=1e-6)
    assert math.isclose(half.perplexity, 2, rel_tol=1e-6)
    with pytest.raises(ValueError, match=r"logits must have the axis 'vocabulary'"):
        losses.next_token_loss(wrap(jnp.ones((3, 2))).tag("seq", "words"), tokens)
    named = wrap(jnp.ones((3, 2))).tag("seq", "words")
    assert losses.next_token_loss(named, tokens, vocabulary_axis="words").count == 2


# --- which parameters ------------------------------------------------------------------------------


def test_filters_by_label_and_selection():
    model = tm.mlp([2, 3, 2])
    parameters = unbind_params(model)[1]
    assert sum(map(trainable.with_labels("*.bias"), parameters)) == 2
    assert sum(map(trainable.with_labels("mlp/Affine_0/*"), parameters)) == 2
    assert sum(map(trainable.with_labels(re.compile(r"_1/.*bias$")), parameters)) == 1
    linear = trainable.in_selection(select(model).at_instances_of(Linear))
    assert [p.label for p in parameters if linear(p)] == [
        "mlp/Affine_0/Linear.weights",
        "mlp/Affine_1/Linear.weights",
    ]
    frozen = trainable.freeze_except(model, linear)
    assert [p.label for p in unbind_params(frozen)[1]] == [p.label for p in parameters if linear(p)]
    with pytest.raises(ValueError, match=r"in_selection: the 1 selected parts hold no parameter"):
        trainable.in_selection(select(Sequential([])))
    with pytest.raises(ValueError, match=r"matches no parameter.*mlp/Affine_0"):
        trainable.freeze_except(model, trainable.with_labels("nothing"))


def test_masks_for_optax():
    model = tm.mlp([2, 3])
    bias = select(model).at_instances_of(AddBias).get().bias
    bias.value = bias.value + 1
    mask = trainable.optax_mask(trainable.with_labels("*.weights"))
    optimizer = optax.chain(optax.add_decayed_weights(1.0, mask=mask), optax.sgd(0.5))
    weight = select(model).at_instances_of(Linear).get().weights
    before = (weight.value, bias.value)
    trainer_of(
        model,
        optimizer,
        lambda model, rng, state, x: (0.0 * mean_square(model, rng, state, x)[0], state, {}),
    ).step(x=X)
    tm.assert_trees_close((weight.value, bias.value), (before[0] * 0.5, before[1]))


# --- optimizer, precision, average -----------------------------------------------------------------


def test_accumulated_steps_equal_one_large_batch():
    def batch_loss(model, rng, state, x):
        return (model(x).unwrap("batch", "features") ** 2).mean(), state, {}

    xs = tm.random_input(batch=4, features=2)
    options = {"peak_learning_rate": 0.1, "total_steps": 10, "warmup_steps": 0}
    whole, parts = tm.mlp([2, 2]), tm.mlp([2, 2])
    trainer_of(whole, optimizers.adamw_with_warmup(**options), batch_loss).step(x=xs)
    accumulating = trainer_of(
        parts, optimizers.adamw_with_warmup(**options, accumulate=2), batch_loss
    )
    for half in (slice(0, 2), slice(2, 4)):
        accumulating.step(x=xs[{"batch": half}])
    tm.assert_trees_close(freeze_params(parts), freeze_params(whole), atol=1e-6)


def test_optimizer_schedule_clipping_and_decay():
    optimizer = optimizers.adamw_with_warmup(
        peak_learning_rate=1.0, total_steps=10, warmup_steps=2, weight_decay=0.5, clip_norm=1e-3
    )
    params = tuple(
        ParameterValue(label=label, value=jnp.ones(2), metadata={})
        for label in ("a.weights", "a.bias", "norm/scale.weights")
    )
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zero, state, params)  # learning rate 0 at first
    updates, _ = optimizer.update(zero, state, params)
    np.testing.assert_allclose([u.value[0] for u in updates], [-0.25, 0, 0], atol=1e-6)
    with pytest.raises(ValueError, match=r"accumulate=0, warmup_steps=3, total_steps=2"):
        optimizers.adamw_with_warmup(
            peak_learning_rate=1, total_steps=2, warmup_steps=3, accumulate=0
        )


@pytest.mark.parametrize("clip_norm, length", [(0.5, 0.5), (None, 5.0)])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(clip_norm, length):
    optimizer = optimizers.adamw_with_warmup(
        peak_learning_rate=1.0, total_steps=10, b1=0.0, clip_norm=clip_norm
    )
    gradients = (jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0]))  # of length 5 together
    params = tuple(
        ParameterValue(label=label, value=jnp.zeros(2), metadata={}) for label in ("a", "b")
    )
    gradients = jax.tree.unflatten(jax.tree.structure(params), gradients)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    (adam,) = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
    want = jax.tree.map(
        lambda g: g * length / 5, gradients
    )  # without b1 the moment is the gradient
    tm.assert_trees_close(adam.mu, want)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


def test_the_learning_rate_rises_and_falls_as_a_cosine():
    optimizer = optimizers.adamw_with_warmup(
        peak_learning_rate=2.0, total_steps=4, warmup_steps=2, final_fraction=0.5, weight_decay=1.0
    )
    params = (ParameterValue(label="a.weights", value=jnp.ones(1), metadata={}),)
    zero, state, rates = jax.tree.map(jnp.zeros_like, params), optimizer.init(params), []
    for _ in range(6):  # with gradients of 0 only the decay is left, times the learning rate
        updates, state = optimizer.update(zero, state, params)
        rates.append(-float(updates[0].value[0]))
    np.testing.assert_allclose(rates, [0, 1, 2, 1.5, 1, 1], atol=1e-6)


def test_mixed_precision_computes_small_and_keeps_float32_weights():
    seen = []

    def loss(model, rng, state, x):
        seen.append(select(model).at_instances_of(Linear).get().weights.value.dtype)
        return mean_square(model, rng, state, x)

    model = tm.mlp([2, 2])
    half = mixed_precision.in_dtype(loss, jnp.bfloat16)
    assert half == mixed_precision.in_dtype(loss)
    trainer = trainer_of(model, optax.adam(0.1), half)
    value, aux = trainer.step_with_loss(x=X)
    assert (value.dtype, aux["vector"].dtype, seen) == (jnp.float32, jnp.bfloat16, [jnp.bfloat16])
    arrays = jax.tree.leaves(
        (unbind_params(model, freeze=True)[1], trainer.state.value.opt_state[0].mu)
    )
    assert {a.dtype for a in arrays} == {jnp.dtype("float32")}
    want, _ = trainer_of(tm.mlp([2, 2])).step_with_loss(x=X)
    np.testing.assert_allclose(value, want, rtol=3e-2)


def test_mixed_precision_leaves_bad_losses_to_the_trainer():
    for bad, told in (
        (lambda out: (out**2).mean(), r"three results.*an array of shape \(\)"),
        (lambda out: (out, None, {}), r"scalar floating-point array.*shape \(2,\)"),
        (lambda out: (jnp.int32(1), None, {}), r"scalar floating-point array.*int32"),
    ):

        def loss(model, rng, state, x, bad=bad):
            return bad(model(x).unwrap("features"))

        with pytest.raises(TypeError, match=told):
            trainer_of(tm.mlp([2, 2]), loss=mixed_precision.in_dtype(loss)).step(x=X)
    with pytest.raises(ValueError, match=r"floating-point one such as jnp\.bfloat16, got .*int32"):
        mixed_precision.in_dtype(mean_square, jnp.int32)


def test_moving_average(tmp_path):
    model = tm.mlp([2, 2])
    average = ExponentialMovingAverage.of(model, 0.75)
    trainer = trainer_of(model)
    expected = jax.tree.leaves(freeze_params(model))
    expected = [np.asarray(e) for e in expected]
    for _ in range(3):
        trainer.step(x=X)
        average.update(model)
        now = jax.tree.leaves(freeze_params(model))
        expected = [0.75 * e + 0.25 * np.asarray(n) for e, n in zip(expected, now, strict=True)]
    smooth = average.averaged(model)
    tm.assert_trees_close(jax.tree.leaves(freeze_params(smooth)), expected)
    save(tmp_path, average)
    again = load(tmp_path, ExponentialMovingAverage.of(model, 0.75))
    tm.assert_trees_close(again.average.value, average.average.value, atol=0)
    for call in (average.update, average.averaged):
        with pytest.raises(ValueError, match=r"only in the model: \['other/"):
            call(tm.mlp([2, 2], name="other"))
    other = tm.mlp([2, 2], name="other")
    ExponentialMovingAverage.of(other, 0.75).update(other)  # the repair
    with pytest.raises(ValueError, match=r"decay must be .* got 1"):
        ExponentialMovingAverage.of(model, 1)


# --- the loop --------------------------------------------------------------------------------------


def test_fit_with_callbacks_evaluation_and_writers(tmp_path, capsys):
    model = tm.mlp([2, 2])
    trainer = trainer_of(model)
    calls = []

    def metrics(model, x):
        return {"square": ((model(x).unwrap("features") ** 2).sum(), 2)}

    done = fit(
        trainer,
        ({"x": X} for _ in range(100)),
        steps=6,
        callbacks=[
            evaluating(lambda: evaluate(model, metrics, [{"x": X}]), every=3),
            metric_writers.JsonLinesWriter(tmp_path / "run" / "log.jsonl"),
            metric_writers.CsvWriter(tmp_path / "log.csv", ["loss", "size", "validation/square"]),
            every(2, lambda event: calls.append(event.step)),
        ],
    )
    assert done == 6
    assert calls == [2, 4, 6]
    assert "loss=" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]) == {"step", "loss", "size"}
    assert rows[2]["validation/square"] < rows[2]["loss"]
    with (tmp_path / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    assert [bool(row["validation/square"]) for row in table] == [False, False, True] * 2
    assert fit(trainer, [{"x": X}] * 2, progress=False) == 8


def test_evaluate_weights_batches_by_their_counts():
    def metrics(model, x):
        return {"mean": (x.sum(), x.size)}

    batches = [{"x": jnp.ones(1)}, {"x": jnp.zeros(3)}]
    for jit in (True, False):
        assert evaluate(None, metrics, batches, jit=jit) == {"mean": 0.25}
    with pytest.raises(ValueError, match="there was no batch"):
        evaluate(None, metrics, [])
    with pytest.raises(TypeError, match=r"'mean' must be a pair \(sum, count\), got a ArrayImpl"):
        evaluate(None, lambda model, x: {"mean": x.mean()}, batches)
    with pytest.raises(ValueError, match=r"nothing was counted for \['mean'\]"):
        evaluate(None, lambda model, x: {"mean": (x.sum(), 0)}, batches)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        every(0, print)


def test_early_stopping_counts_failures_in_a_row():
    stopping = EarlyStopping("loss", patience=1, min_delta=0.1)
    values = [3.0, 2.0, 1.95, 1.0, 1.0, None, 0.95]
    stops = [
        stopping(training_loop.TrainingEvent(i, {} if v is None else {"loss": v}, None))
        for i, v in enumerate(values)
    ]
    assert stops == [False, False, False, False, False, False, True]
    done = fit(
        trainer_of(tm.mlp([2, 2]), optax.sgd(0.0)),
        [{"x": X}] * 9,
        progress=False,
        callbacks=[EarlyStopping("loss", patience=2)],
    )
    assert done == 4


def test_early_stopping_names_the_metrics_that_there_are():
    trainer = trainer_of(tm.mlp([2, 2]), optax.sgd(0.0))
    other = evaluating(lambda: {"loss": 1.0}, every=1)
    late = evaluating(lambda: {"score": 1.0}, every=2)

    def run(*callbacks):
        return fit(trainer, [{"x": X}] * 2, progress=False, callbacks=callbacks)

    stopping = EarlyStopping("validation/score", patience=9)
    with pytest.raises(
        ValueError,
        match=r"EarlyStopping\('validation/score'\): there is no such metric, only "
        r"\['validation/loss'\]\..* They were evaluated at step 1\. Give one of these names; or",
    ):
        run(other, late, stopping)
    run(evaluating(lambda: {"loss": 1.0}, every=1, prefix="other/"), late, stopping)  # the repair
    assert stopping.best == 1.0
    run(other, late, stopping)  # it has been there, so it may be lacking now

    with pytest.warns(
        UserWarning,
        match=r"fit: EarlyStopping\('validaton/loss'\): there is no such metric, only "
        r"\['loss', 'size', 'validation/loss'\]\. Did you mean 'validation/loss'\? So it could not",
    ):
        run(other, EarlyStopping("validaton/loss", patience=9))
    stopping = EarlyStopping("validation/loss", patience=9)
    with pytest.warns(
        UserWarning, match=r"called before the callback that adds .* Put it after"
    ) as caught:
        run(stopping, other)
    assert caught[0].filename == __file__
    run(other, stopping)  # the repair
    fit(trainer, [], progress=False, callbacks=[EarlyStopping("x", patience=9)])  # no step, no word


def test_writers_refuse_late_columns_and_write_nothing_for_nan(tmp_path):
    event = training_loop.TrainingEvent(1, {"loss": math.nan}, None)
    metric_writers.JsonLinesWriter(tmp_path / "a")(event)
    assert json.loads((tmp_path / "a").read_text()) == {"step": 1, "loss": None}
    writer = metric_writers.CsvWriter(tmp_path / "b")
    writer(event)
    late = training_loop.TrainingEvent(2, {"loss": 1.0, "extra": 2.0}, None)
    with pytest.raises(ValueError, match=r"none for \['extra'\].*columns=\['loss', 'extra'\]"):
        writer(late)
    again = metric_writers.CsvWriter(tmp_path / "c", columns=["loss", "extra"])
    again(event)
    again(late)
    assert len((tmp_path / "c").read_text().splitlines()) == 3


def test_tensorboard_writer_writes_what_tensorboard_reads(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    writer = metric_writers.TensorBoardWriter(tmp_path)
    for step in (1, 2):
        writer(training_loop.TrainingEvent(step, {"loss": jnp.float32(step) / 4}, None))
    writer.close()
    (path,) = tmp_path.glob("events*")
    data, scalars = path.read_bytes(), []
    while data:  # records: length, checksum, event, checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    assert scalars == [(1, "loss", 0.25), (2, "loss", 0.5)]


def test_a_missing_tensorboardx_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pz-toolshed\[tensorboard\]'; JsonLinesWriter"):
        metric_writers.TensorBoardWriter(tmp_path)
