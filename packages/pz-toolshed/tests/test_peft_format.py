import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toolshed_models as tm

from pz_core.selectors import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, bind_variables, freeze_params, unbind_params
from pz_named.named_axes import NamedArray, wrap
from pz_nn.dropout import StochasticDropout
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import Linear
from pz_toolshed._safetensors_file import read_header
from pz_toolshed.checkpoint_errors import CheckpointFormatError
from pz_toolshed.lora import LowRankAdapter, loraify_linears_in_selection, merge_adapters
from pz_toolshed.peft_format import (
    AdapterFormatError,
    llama_module_name,
    load_adapters,
    save_adapters,
)

WIDTH, HEADS, HEAD_SIZE, HIDDEN = 8, 2, 4, 12


def linears(blocks=2):
    """Two layers of each block of a Llama, with the labels of a Llama-like model."""
    return [layer for i in range(blocks) for layer in block_linears(f"net/block_{i}", tm.key(i))]


def block_linears(name, init_base_rng):
    heads = {"head_groups": HEADS, "query_heads": 2, "projection": HEAD_SIZE // 2}
    return [
        Linear.from_config(f"{name}/attention/query", init_base_rng, {"embedding": WIDTH}, heads),
        Linear.from_config(
            f"{name}/mlp/out_linear", init_base_rng, {"neurons": HIDDEN}, {"embedding": WIDTH}
        ),
    ]


def stacked():
    return LayerStack.from_sublayer_builder(
        lambda init_base_rng: block_linears("net/blocks", init_base_rng), "blocks", 2, tm.key(), {}
    )


def adapted(model, **options):
    options = {"rank": 3, "naming": "weight", **options}
    model = loraify_linears_in_selection(
        select(freeze_params(model)), init_base_rng=tm.key(5), **options
    )
    return tm.with_random_parameters(model, seed=0)


def outputs(layers):
    stream = tm.stream()
    return [
        layer(wrap(jnp.linspace(-1, 1, size)).tag(axis), random_stream=stream)
        for layer, (axis, size) in zip(
            layers, [("embedding", WIDTH), ("neurons", HIDDEN)] * (len(layers) // 2), strict=True
        )
    ]


def assert_same_tensors(*folders):
    one, two = (read_header(folder / "adapter_model.safetensors") for folder in folders)
    assert set(one.tensors) == set(two.tensors)
    for name in one.tensors:
        np.testing.assert_array_equal(one.read(name), two.read(name))


@pytest.mark.smoke
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_round_trip(tmp_path, alpha):
    model = adapted(linears(), alpha=alpha)
    save_adapters(tmp_path, model)
    loaded = load_adapters(tmp_path, freeze_params(linears()))
    tm.assert_trees_close(outputs(loaded), outputs(model), atol=1e-5)
    assert [p.label for p in unbind_params(loaded)[1]] == [p.label for p in unbind_params(model)[1]]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, alpha or 3)
    assert config["target_modules"][0] == "model.layers.0.mlp.down_proj"


def test_round_trip_of_dora_stacked_and_not(tmp_path):
    model = adapted(linears(), alpha=6.0, use_dora=True)
    save_adapters(tmp_path / "one", model)
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["use_dora"] is True
    loaded = load_adapters(tmp_path / "one", freeze_params(linears()))
    tm.assert_trees_close(outputs(loaded), outputs(model), atol=1e-5)
    assert [p.label for p in unbind_params(loaded)[1]] == [p.label for p in unbind_params(model)[1]]

    in_stack = load_adapters(tmp_path / "one", freeze_params(stacked()))
    assert len(unbind_params(in_stack)[1]) == 6
    save_adapters(tmp_path / "two", in_stack)
    assert_same_tensors(tmp_path / "one", tmp_path / "two")


def test_dora_and_plain_adapters_are_told_apart(tmp_path):
    plain, dora = adapted(linears()), adapted(linears(), use_dora=True)
    with pytest.raises(ValueError, match=r"2 of 4 adapters are DoRA adapters.*Save the parts"):
        save_adapters(tmp_path, [*plain[:2], *dora[2:]])
    for folder, model, other in (("plain", plain, dora), ("dora", dora, plain)):
        save_adapters(tmp_path / folder, model[:2])  # the repair
        with pytest.raises(ValueError, match="has adapters already"):
            load_adapters(tmp_path / folder, other)
        load_adapters(tmp_path / folder, linears())
    (tmp_path / "dora/adapter_config.json").write_bytes(
        (tmp_path / "plain/adapter_config.json").read_bytes()
    )
    with pytest.raises(AdapterFormatError, match=r"has a lora_magnitude_vector.*use_dora=False"):
        load_adapters(tmp_path / "dora", linears())


def test_ranks_and_dropout_may_differ_and_stacked_equals_unstacked(tmp_path):
    ranked = adapted(
        linears(),
        rank=lambda path, linear: 2 if "query_heads" in linear.out_axis_names else 1,
        dropout=0.25,
        alpha=2.0,
    )
    save_adapters(tmp_path / "ranked", ranked)
    loaded = load_adapters(tmp_path / "ranked", linears())
    tm.assert_trees_close(outputs(loaded), outputs(ranked), atol=1e-5)

    save_adapters(tmp_path / "whole", adapted(linears()))
    in_stack = load_adapters(tmp_path / "whole", freeze_params(stacked()))
    want = unbind_params(load_adapters(tmp_path / "whole", freeze_params(linears())))[1]
    got = unbind_params(in_stack)[1]
    assert len(got) == 4
    for i, parameter in enumerate(got):
        for block in range(2):
            tm.assert_trees_close(
                parameter.value[{"blocks": block}], want[block * 4 + i].value, atol=0
            )
    save_adapters(tmp_path / "again", in_stack)
    assert_same_tensors(tmp_path / "whole", tmp_path / "again")


def test_module_names():
    assert llama_module_name("a/b/block_3/attention/key.weights", None) == (
        "model.layers.3.self_attn.k_proj"
    )
    assert llama_module_name("net/blocks/mlp/gating_linear.weights", 7) == (
        "model.layers.7.mlp.gate_proj"
    )
    assert llama_module_name("net/lm_head.weights", None) == "lm_head"
    assert llama_module_name("net/block_0/pre_ffw_norm/scale.weights", None) is None
    assert llama_module_name("net/blocks/mlp/gating_linear.weights", None) is None


def test_errors(tmp_path):
    model = adapted(linears())
    save_adapters(tmp_path, model)
    with pytest.raises(ValueError, match=r"adapters for another model.*layers\.1.*nearest"):
        load_adapters(tmp_path, linears(1))
    with pytest.raises(ValueError, match=r"has adapters already.*merge_adapters"):
        load_adapters(tmp_path, model)
    wide = [
        Linear.from_config(f"net/block_{i}/{name}", tm.key(), {"embedding": 4}, {"neurons": 4})
        for i in range(2)
        for name in ("attention/query", "mlp/out_linear")
    ]
    with pytest.raises(
        ValueError, match=r"shape \(3, 8\), but its place in the model needs \(3, 4\)"
    ):
        load_adapters(tmp_path, wide)
    with pytest.raises(ValueError, match="no LowRankAdapter"):
        save_adapters(tmp_path, linears())
    with pytest.raises(ValueError, match=r"no module for the weight 'mlp/Affine_0.*module_name"):
        save_adapters(tmp_path, adapted(tm.mlp([2, 3])))
    save_adapters(tmp_path, adapted(tm.mlp([2, 3])), module_name=lambda label, block: "x")
    with pytest.raises(ValueError, match="another model"):
        load_adapters(tmp_path, linears())

    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, rule in (
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\] is not supported"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number other than 0, got None"),
        ({"lora_alpha": np.nan}, "lora_alpha must be a finite number other than 0, got nan"),
        ({"alpha_pattern": {"q": 0}}, r"alpha_pattern\['q'\] must be a finite .*, got 0"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(AdapterFormatError, match=rule):
            load_adapters(tmp_path, linears())
    path.write_text("{")
    with pytest.raises(AdapterFormatError, match="is damaged"):
        load_adapters(tmp_path, linears())


def test_a_folder_without_adapters_is_described(tmp_path):
    both = r"no adapter_config\.json and no adapter_model\.safetensors in"
    repair = (
        r"Give the folder that was given to save_adapters, which writes adapter_config\.json and"
    )
    save_adapters(tmp_path / "run" / "adapters", adapted(linears()))
    (tmp_path / "run" / "log.jsonl").touch()
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("run", rf"{both} .*run; it holds adapters, log\.jsonl\. {repair}"),
        ("empty", rf"{both} .*empty; it holds nothing\. {repair}"),
        ("absent", rf"{both} .*absent; there is no such folder\. {repair}"),
        ("run/log.jsonl", rf"{both} .*log\.jsonl; that is a file\. {repair}"),
    ):
        with pytest.raises(FileNotFoundError, match=text):
            load_adapters(tmp_path / name, linears())
    folder = tmp_path / "run" / "adapters"
    load_adapters(folder, linears())  # the repair
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors in .*model\.bin\."):
        load_adapters(folder, linears())


def test_a_missing_matrix_is_named_and_damage_noticed(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy")
    save_adapters(tmp_path, adapted(linears()))
    path = tmp_path / "adapter_model.safetensors"
    tensors = numpy_format.load_file(path)
    name = next(n for n in tensors if n.endswith("layers.0.self_attn.q_proj.lora_B.weight"))
    numpy_format.save_file({n: x for n, x in tensors.items() if n != name}, path)
    with pytest.raises(AdapterFormatError, match=r"'model.layers.0.self_attn.q_proj' lacks lora_B"):
        load_adapters(tmp_path, linears())
    numpy_format.save_file({**tensors, "base_model.model.head.weight": tensors[name]}, path)
    with pytest.raises(
        AdapterFormatError, match=r"'base_model.model.head.weight' is no part of a LoRA"
    ):
        load_adapters(tmp_path, linears())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointFormatError, match="is damaged"):
        load_adapters(tmp_path, linears())
    numpy_format.save_file(tensors, path)  # the repair: copy the file again
    load_adapters(tmp_path, linears())


def test_a_stack_needs_an_adapter_in_every_block(tmp_path):
    save_adapters(tmp_path, adapted(linears(1)))
    with pytest.raises(ValueError, match=r"all or none.*lacks \['model\.layers\.1\.self_attn"):
        load_adapters(tmp_path, stacked())
    assert select(load_adapters(tmp_path, linears(1))).at_instances_of(LowRankAdapter).count() == 2


# --- against the peft library ----------------------------------------------------------------------


def torch_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        num_hidden_layers=2,
        vocab_size=11,
    )
    return transformers.LlamaForCausalLM(config).eval()


def torch_outputs(torch, model):
    results = []
    for layer in model.base_model.model.model.layers:
        for module, size in ((layer.self_attn.q_proj, WIDTH), (layer.mlp.down_proj, HIDDEN)):
            with torch.no_grad():
                results.append(module(torch.linspace(-1, 1, size)).numpy().reshape(-1))
    return results


def change_magnitudes(torch, model):
    """At first they are the norms by which they are divided, so any scale would do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.linspace(0.5, 2, len(parameter)))


def our_linears(model):
    """Our layers with the weights of the torch model."""
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    layers = []
    for i in range(2):
        q, down = (
            tensors[f"model.layers.{i}.{m}.weight"] for m in ("self_attn.q_proj", "mlp.down_proj")
        )
        query = wrap(jnp.asarray(q.reshape(2, 2, 2, WIDTH))).tag(
            "head_groups", "query_heads", "projection", "embedding"
        )
        out = wrap(jnp.asarray(down)).tag("embedding", "neurons")
        layers.append(
            Linear(
                Parameter(label=f"net/block_{i}/attention/query.weights", value=query),
                ("embedding",),
                ("head_groups", "query_heads", "projection"),
            )
        )
        layers.append(
            Linear(
                Parameter(label=f"net/block_{i}/mlp/out_linear.weights", value=out),
                ("neurons",),
                ("embedding",),
            )
        )
    return layers


@pytree_dataclass
class Mask(Layer):
    """A dropout that always drops the same entries."""

    factors: NamedArray

    def __call__(self, value, /, **_side_inputs):
        return value * self.factors


def flat(layer_outputs):
    order = ("head_groups", "query_heads", "projection", "embedding")
    return [
        np.asarray(o.unwrap(*(n for n in order if n in o.named_shape))).reshape(-1)
        for o in layer_outputs
    ]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"down_proj": 7}},
        {"use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True},
    ],
    ids=["plain", "patterns", "rslora", "dora", "dora with rslora"],
)
def test_adapters_of_peft_are_read(tmp_path, options):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    base = torch_llama()
    ours = our_linears(base)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        **options,
    )
    theirs = peft.get_peft_model(base, config).eval()
    change_magnitudes(torch, theirs)
    theirs.save_pretrained(tmp_path)
    want = torch_outputs(torch, theirs)
    for got, there in zip(flat(outputs(load_adapters(tmp_path, ours))), want, strict=True):
        np.testing.assert_allclose(got, there, atol=1e-5)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_reads_our_adapters(tmp_path, use_dora):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    base = torch_llama()
    ours = adapted(
        our_linears(base),
        alpha=5.0,
        rank=lambda path, linear: 2 if "query_heads" in linear.out_axis_names else 3,
        use_dora=use_dora,
    )
    save_adapters(tmp_path, ours)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    for got, there in zip(flat(outputs(ours)), torch_outputs(torch, theirs), strict=True):
        np.testing.assert_allclose(got, there, atol=1e-4)
    theirs_merged = our_linears(theirs.merge_and_unload())
    for got, there in zip(merge_adapters(ours), theirs_merged, strict=True):
        tm.assert_trees_close(got.weights.value, there.weights.value, atol=1e-4)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_dora_are_those_of_peft(tmp_path, dropout):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    base = torch_llama()
    ours = freeze_params(our_linears(base))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        lora_dropout=dropout,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        use_dora=True,
    )
    theirs = peft.get_peft_model(base, config).train()
    change_magnitudes(torch, theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_adapters(tmp_path, ours)
    assert select(ours).at_instances_of(StochasticDropout).count() == (4 if dropout else 0)

    masks = [np.arange(size, dtype=np.float32) % 3 for size in (WIDTH, HIDDEN)]
    their_sum = 0.0
    for layer in theirs.base_model.model.model.layers:
        for module, mask in zip((layer.self_attn.q_proj, layer.mlp.down_proj), masks, strict=True):
            if dropout:
                module.lora_dropout["default"].forward = torch.tensor(mask).mul
            their_sum = their_sum + torch.sin(module(torch.linspace(-1, 1, len(mask)))).sum()
    their_sum.backward()

    for i, layer in enumerate(ours):
        factors = wrap(jnp.asarray(masks[i % 2])).tag(*layer.pretrained.in_axis_names)
        ours[i] = select(layer).at_instances_of(StochasticDropout).set(Mask(factors))
    slots, values = unbind_params(ours, freeze=True)
    our_sum, gradients = jax.value_and_grad(
        lambda values: sum(
            jnp.sin(y.data_array).sum() for y in outputs(bind_variables(slots, values))
        )
    )(values)
    np.testing.assert_allclose(our_sum, their_sum.item(), atol=1e-5)
    save_adapters(tmp_path / "gradients", bind_variables(slots, gradients))
    file = read_header(tmp_path / "gradients" / "adapter_model.safetensors")
    assert len(file.tensors) == 12
    for name in file.tensors:
        parameter = theirs.get_parameter(f"{name.removesuffix('.weight')}.default.weight")
        assert parameter.grad.abs().max() > 1e-3
        np.testing.assert_allclose(file.read(name), parameter.grad, atol=1e-5, err_msg=name)
