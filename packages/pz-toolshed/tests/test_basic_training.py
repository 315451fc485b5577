import contextlib
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.variables import (
    Parameter,
    ParameterValue,
    StateVariable,
    bind_variables,
    freeze_params,
    unbind_params,
)
from pz_named.named_axes import wrap
from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import AddBias, Linear

optax = pytest.importorskip("optax")
from pz_toolshed import basic_training, lora  # noqa: E402
from pz_toolshed.basic_training import NonFiniteLossError, StatefulTrainer  # noqa: E402

XS = wrap(jnp.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])).tag("batch", "features")
LABELS = jnp.array([[0.0, 1], [1, 0], [1, 0], [0, 1]])


def xor_loss(model, rng, state, xs, labels):
    log_probs = jax.nn.log_softmax(model(xs).unwrap("batch", "features"))
    loss = -(log_probs * labels).sum() / 4 + 0.01 * jax.random.uniform(rng)
    return loss, state + 1, {"loss": loss, "count": state}


def mean_square(model, rng, state, x):
    out = model(x).canonicalize().data_array
    return (out**2).mean(), state, {}


def trainer_of(model, optimizer=None, loss=mean_square, **kwargs):
    optimizer = optimizer or optax.adam(0.1)
    return StatefulTrainer.build(
        root_rng=tm.key(42), model=model, optimizer_def=optimizer, loss_fn=loss, **kwargs
    )


@pytest.mark.smoke
def test_reference_losses():
    trainer = trainer_of(tm.mlp([2, 8, 2]), loss=xor_loss, initial_loss_fn_state=5)
    logs = [trainer.step(xs=XS, labels=LABELS) for _ in range(5)]
    np.testing.assert_allclose(
        [log["loss"] for log in logs], [0.844815, 0.631001, 0.472827, 0.342541, 0.239283], atol=2e-5
    )
    assert [int(log["count"]) for log in logs] == [5, 6, 7, 8, 9]
    step = trainer.state.value.step
    assert (int(step), step.dtype, trainer.state.label) == (5, jnp.int32, "StatefulTrainer.state")
    assert int(trainer.state.value.loss_fn_state) == 10


@pytest.mark.parametrize("options", [{}, {"donate_states": True}])
def test_xor_is_learned_also_by_low_rank_adapters(options):
    for adapt in (False, True):
        model = tm.mlp([2, 32, 32, 2])
        if adapt:
            model = lora.loraify_linears_in_selection(
                select(freeze_params(model)), rank=4, init_base_rng=tm.key(1)
            )
        trainer = trainer_of(model, loss=xor_loss, initial_loss_fn_state=100, **options)
        logs = [trainer.step(xs=XS, labels=LABELS) for _ in range(20)]
        assert [int(log["count"]) for log in logs] == list(range(100, 120))
        assert logs[0]["loss"] > 0.6
        assert logs[-1]["loss"] < 0.011  # the noise is up to 0.01


def test_a_step_that_is_not_compiled_gives_the_same():
    models = [tm.mlp([2, 2]) for _ in range(2)]
    for model, jit in zip(models, (False, True), strict=True):
        trainer = trainer_of(model, loss=xor_loss, initial_loss_fn_state=0, jit=jit)
        trainer.step(xs=XS, labels=LABELS)
    tm.assert_trees_close(*(unbind_params(model, freeze=True)[1] for model in models))


def test_equals_the_hand_written_step():
    model = tm.mlp([2, 3])
    slots, params = unbind_params(model, freeze=True)
    x = tm.random_input(features=2)
    optimizer = optax.adamw(0.1)
    opt_state = optimizer.init(params)
    trainer = trainer_of(model, optimizer)
    for step in range(3):

        def loss(params, step=step):
            return mean_square(bind_variables(slots, params), None, None, x)[0]

        want, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        got, _ = trainer.step_with_loss(x=x)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        tm.assert_trees_close(unbind_params(model, freeze=True)[1], params)
    tm.assert_trees_close(trainer.state.value.opt_state, opt_state)


@pytest.mark.parametrize("how", ["metadata", "predicate"])
def test_partially_trainable_models_have_optimizer_state_for_what_is_trained(how):
    model = tm.mlp([2, 3, 2])
    biases = [b.bias for b in select(model).at_instances_of(AddBias).get_sequence()]
    if how == "metadata":
        for bias in biases:
            bias.metadata["trainable"] = False
        trainer = trainer_of(model)
    else:
        trainer = trainer_of(model, is_trainable=lambda p: p.label.endswith(".weights"))
    before = [b.value for b in biases]
    weight = select(model).at_instances_of(Linear).pick_nth_selected(0).get().weights
    weight_before = weight.value
    for _ in range(2):
        trainer.step(x=tm.random_input(features=2))
    tm.assert_trees_close([b.value for b in biases], before, atol=0)
    assert not np.allclose(weight.value.data_array, weight_before.data_array)
    moments = trainer.state.value.opt_state[0].mu
    assert [type(m) for m in moments] == [ParameterValue] * 2
    assert all(m.label.endswith(".weights") for m in moments)


def test_parameters_without_floats_are_not_trained():
    table = Parameter(label="table", value=wrap(jnp.arange(3)).tag("rows"))
    trainer = trainer_of([tm.mlp([2, 2]), table])
    assert len(trainer.state.value.opt_state[0].mu) == 2


def test_state_variables_and_random_streams_in_and_beside_the_model():
    counter, stream = tm.counter(), tm.stream()
    model = Sequential([tm.mlp([2, 4, 2], drop_rate=0.5), counter])

    def loss(model, rng, state, x, stream):
        return (model(x, random_stream=stream).unwrap("features") ** 2).mean(), state, {}

    trainer = trainer_of(model, loss=loss)
    for _ in range(3):
        trainer.step(x=tm.random_input(features=2), stream=stream)
    assert (int(counter.count.value), int(stream.offset.value)) == (3, 3)


def test_frozen_parameters_and_a_model_without_parameters():
    model = freeze_params(tm.mlp([2, 2]))
    trainer = trainer_of(model)
    trainer.step(x=tm.random_input(features=2))
    assert int(trainer.state.value.step) == 1


def test_donation_keeps_live_parameters_and_two_trainers_share_them():
    model = tm.mlp([2, 2])
    frozen = freeze_params(model)
    first, second = trainer_of(model, donate_states=True), trainer_of(model)
    x = tm.random_input(features=2)
    loss1, _ = first.step_with_loss(x=x)
    loss2, _ = second.step_with_loss(x=x)
    assert float(loss2) < float(loss1)
    assert np.isfinite(model(x).unwrap("features")).all()
    with pytest.raises((RuntimeError, ValueError), match=r"deleted"):
        frozen(x).unwrap("features").block_until_ready()


def test_one_compilation_for_many_steps_and_for_two_equal_models():
    traces = []

    def loss(model, rng, state, x):
        traces.append(1)
        return mean_square(model, rng, state, x)

    optimizer = optax.sgd(0.1)
    for seed in range(2):
        trainer = trainer_of(tm.mlp([2, 2], seed=seed), optimizer, loss)
        for _ in range(3):
            trainer.step(x=tm.random_input(features=2))
    assert len(traces) == 1


def test_masks_see_labels():
    mask = lambda tree: jax.tree.map(  # noqa: E731
        lambda p: p.label.endswith(".weights"),
        tree,
        is_leaf=lambda p: isinstance(p, ParameterValue),
    )
    model = tm.mlp([2, 2])
    bias = select(model).at_instances_of(AddBias).get().bias
    before = bias.value
    optimizer = optax.chain(
        optax.masked(optax.set_to_zero(), lambda t: jax.tree.map(lambda yes: not yes, mask(t))),
        optax.sgd(0.1),
    )
    trainer_of(model, optimizer).step(x=tm.random_input(features=2))
    tm.assert_trees_close(bias.value, before, atol=0)


# --- bad input -----------------------------------------------------------------------------------


def snapshot(trainer):
    return jax.tree.map(
        np.asarray, (unbind_params(trainer.model, freeze=True)[1], trainer.state.value)
    )


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    "poison, told",
    [
        (-1.0, r"loss of step 1 is nan; gradients.*Affine_1"),
        (0.0, r"loss of step 1 is 0\.\d+, but its gradient is not finite; gradients.*Affine_1"),
    ],
)
def test_what_is_not_finite_stops_with_step_and_label(donate, poison, told):
    def loss(model, rng, state, x, poison):
        weight = select(model).at_instances_of(Linear).pick_nth_selected(1).get().weights.value
        return (
            mean_square(model, rng, state, x)[0]
            + jnp.sqrt(poison + 0 * weight.canonicalize().data_array.sum()),
            state,
            {},
        )

    trainer = trainer_of(tm.mlp([2, 3, 2]), loss=loss, donate_states=donate)
    x = tm.random_input(features=2)
    trainer.step(x=x, poison=1.0)
    before = snapshot(trainer)
    with pytest.raises(NonFiniteLossError, match=told) as info:
        trainer.step(x=x, poison=poison)
    assert (info.value.step, info.value.labels) == (1, ["mlp/Affine_1/Linear.weights"])
    tm.assert_trees_close(snapshot(trainer), before, atol=0)
    trainer.step(x=x, poison=1.0)
    assert int(trainer.state.value.step) == 2

    weight = select(trainer.model).at_instances_of(Linear).pick_nth_selected(0).get().weights
    weight.value = weight.value * jnp.nan
    with pytest.raises(
        NonFiniteLossError,
        match=r"parameters that are not finite: 'mlp/Affine_0.*so before this step",
    ):
        trainer.step(x=x, poison=1.0)


def test_a_loss_that_is_not_finite_can_be_let_through():
    trainer = trainer_of(tm.mlp([2, 2]), stop_if_not_finite=False)
    loss, _ = trainer.step_with_loss(x=tm.random_input(features=2) * jnp.nan)
    assert np.isnan(loss)
    assert int(trainer.state.value.step) == 1


@pytest.mark.parametrize("stops", [False, True])
def test_only_a_trainer_that_stops_waits_for_the_step(stops):
    class Waited(Exception):
        pass

    class Pending:
        def __bool__(self):
            raise Waited

    trainer = trainer_of(tm.mlp([2, 2]), stop_if_not_finite=stops)
    step = trainer.step_fn
    trainer = dataclasses.replace(
        trainer,
        step_fn=lambda *args, **kwargs: dataclasses.replace(
            step(*args, **kwargs), is_finite=Pending()
        ),
    )
    with pytest.raises(Waited) if stops else contextlib.nullcontext():
        trainer.step(x=tm.random_input(features=2))


@pytest.mark.parametrize(
    "bad, found",
    [
        (lambda x: x.canonicalize().data_array, r"shape \(2,\)"),
        (lambda x: (x**2).untag("features").sum(), "NamedArray"),
        (lambda x: 1.0, "float"),
        (lambda x: np.float32(1), r"a numpy\.float32"),
        (lambda x: jnp.int32(1), "int32"),
    ],
)
def test_the_loss_must_be_a_scalar_array(bad, found):
    def loss(model, rng, state, x):
        return bad(model(x)), state, {}

    trainer = trainer_of(tm.mlp([2, 2]), loss=loss)
    before = snapshot(trainer)
    with pytest.raises(TypeError, match=f"scalar floating-point array.*{found}"):
        trainer.step(x=tm.random_input(features=2))
    tm.assert_trees_close(snapshot(trainer), before, atol=0)


@pytest.mark.parametrize(
    "results, found",
    [
        (lambda loss, state: loss, r"an array of shape \(\)"),
        (lambda loss, state: (loss, state), "a tuple of 2"),
        (lambda loss, state: None, "a NoneType"),
    ],
)
def test_the_loss_function_must_return_three_results(results, found):
    def loss(model, rng, state, x):
        return results(mean_square(model, rng, state, x)[0], state)

    trainer = trainer_of(tm.mlp([2, 2]), loss=loss)
    before = snapshot(trainer)
    with pytest.raises(TypeError, match=rf"three results.*got {found}.*return loss, state"):
        trainer.step(x=tm.random_input(features=2))
    tm.assert_trees_close(snapshot(trainer), before, atol=0)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"got a function.*optax\.adam\(1e-3\)"):
        trainer_of(tm.mlp([2, 2]), optax.adam)


def test_a_choice_of_no_parameter_is_refused():
    model = tm.mlp([2, 2])
    with pytest.raises(
        ValueError, match=r"chooses none of the model's 2 parameters.*'mlp/Affine_0"
    ):
        trainer_of(model, is_trainable=lambda p: p.label == "weights")
    trainer_of(model, is_trainable=lambda p: p.label.endswith("weights"))  # the repair


def test_bad_arguments():
    model = tm.mlp([2, 2])
    trainer = trainer_of(model)
    x = tm.random_input(features=2)
    for name in ("model", "state", "rng"):
        with pytest.raises(TypeError, match=f"passes '{name}'"):
            trainer.step(**{name: 1}, x=x)
    with pytest.raises(TypeError):
        trainer.step(x="text")
    with pytest.raises(TypeError, match=r"unexpected"):
        trainer.step(x=x, y=x)
    with pytest.raises(ValueError, match=r"in the model already"):
        trainer.step(x=select(model).at_instances_of(Linear).get().weights)
    assert int(trainer.state.value.step) == 0


def other_model(trainer):
    return dataclasses.replace(trainer, model=tm.mlp([2, 2], name="other"))


def other_sizes(trainer):
    return dataclasses.replace(trainer, model=tm.mlp([2, 4]))


def other_optimizer(trainer):
    return dataclasses.replace(trainer, optimizer_def=optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize(
    "change, told",
    [
        (
            other_model,
            r"mu of 'other/Affine_0.*is missing.*mu of 'mlp/Affine_0.* but nothing needs it",
        ),
        (other_sizes, r"mu of 'mlp/.*weights' has \[\(2, 2\)\], needed is \[\(2, 4\)\]"),
        (other_optimizer, r"trace of 'mlp/.*' is missing, needed is \[\(2, 2\)\].*and 2 more"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_told_in_detail(change, told):
    trainer = change(trainer_of(tm.mlp([2, 2])))
    before = snapshot(trainer)
    with pytest.raises(ValueError, match=rf"does not fit the trained parameters: .*{told}"):
        trainer.step(x=tm.random_input(features=2))
    tm.assert_trees_close(snapshot(trainer), before, atol=0)
    trainer_of(trainer.model, trainer.optimizer_def).step(
        x=tm.random_input(features=2)
    )  # the repair


def test_signature_of_build():
    parameters = list(inspect.signature(StatefulTrainer.build).parameters)
    assert parameters[:7] == [
        "root_rng",
        "model",
        "optimizer_def",
        "loss_fn",
        "initial_loss_fn_state",
        "jit",
        "donate_states",
    ]
    assert [f.name for f in dataclasses.fields(StatefulTrainer)][:6] == [
        "root_rng",
        "model",
        "state",
        "optimizer_def",
        "loss_fn",
        "step_fn",
    ]
    assert isinstance(trainer_of(tm.mlp([2, 2])).state, StateVariable)
    assert basic_training.PRNGKeyArray is jax.Array
