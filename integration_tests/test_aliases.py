"""Every Penzai path is the wheel's own module, whichever is imported first."""

import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "generate_aliases.py"


def _aliases():
    """All generated leaf aliases: {penzai path: wheel path}."""
    spec = importlib.util.spec_from_file_location("generate_aliases", SCRIPT)
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    pairs = dict(generate.SINGLE_MODULES)
    for alias, reals in generate.PACKAGES.items():
        for real in reals:
            for name, is_package in generate.public_modules(real):
                if not is_package:
                    pairs[f"{alias}.{name}"] = f"{real}.{name}"
    return pairs


def test_each_alias_imported_first_in_a_fresh_process_is_the_real_module():
    """A process a path would cost minutes, most of them for jax: each is a fork of one that holds
    the dependencies and nothing of ours."""
    program = """
import contextlib, importlib, json, os, sys
import jax, treescope
for extra in ("flax.nnx", "equinox", "optax", "tokenizers"):
    with contextlib.suppress(ImportError):
        importlib.import_module(extra)
assert not any(name.startswith(("pz_", "penzai")) for name in sys.modules)
pairs = json.loads(sys.argv[1])
for alias, real in pairs.items():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            first = importlib.import_module(alias)
            second = importlib.import_module(real)
            names = getattr(second, "__all__", None)
            same = first is second and sys.modules[alias] is second and names is not None
            os.write(writer, b"ok" if same else b"not the same module, or no __all__")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:400])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as result:
        text = result.read()
    os.waitpid(child, 0)
    if text != "ok":
        print(alias, text)
"""
    pairs = list(_aliases().items())
    halves = [json.dumps(dict(pairs[start::2])) for start in (0, 1)]
    runs = [
        subprocess.Popen([sys.executable, "-c", program, half], stdout=subprocess.PIPE, text=True)
        for half in halves
    ]
    assert [run.communicate()[0] for run in runs] == ["", ""]
    assert [run.returncode for run in runs] == [0, 0]


def test_the_identity_check_can_fail():
    import penzai.core.selectors
    import pz_core.struct

    assert penzai.core.selectors is not pz_core.struct


def test_pz_offers_the_same_objects():
    import pz_core
    import pz_named.named_axes
    import pz_nn
    from penzai import pz

    assert pz.select is pz_core.select
    assert pz.nx is pz_named.named_axes
    assert pz.nn.Linear is pz_nn.Linear
    assert pz.nn.freeze_params is pz_core.freeze_params


@pytest.mark.parametrize("module", ["penzai.deprecated.v1", "penzai.experimental"])
def test_the_legacy_paths_say_where_they_went(module):
    with pytest.raises(ImportError, match=r"not provided.*README"):
        importlib.import_module(module)


# Every module path of Penzai V2; what a path holds is guarded by the aliases' own test.
V2_MODULES = {
    "core": "auto_order_types named_axes partitioning random_stream selectors shapecheck struct "
    "syntactic_sugar tree_util variables",
    "models": "simple_mlp transformer",
    "models.transformer": "model_parts sampling_mode simple_decoding_loop variants",
    "models.transformer.variants": "gemma gpt_neox llama llamalike_common mistral",
    "nn": "attention basic_ops combinators dropout embeddings grouping layer layer_stack "
    "linear_and_affine parameters standardization",
    "pz": "nn ts",
    "toolshed": "auto_nmap basic_training gradient_checkpointing isolate_submodel jit_wrapper lora "
    "model_rewiring patch_ipdb save_intermediates sharding_util token_visualization unflaxify",
    "treescope": "_compatibility_setup formatting_util repr_lib",
}


@pytest.mark.parametrize("package", V2_MODULES)
def test_every_module_path_of_v2_is_here(package):
    for name in V2_MODULES[package].split():
        spec = importlib.util.find_spec(f"penzai.{package}.{name}")
        assert spec is not None, name
