"""GGUF files: what is read, how values come out, and what is refused."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import pz_models_tiny as tiny
from hypothesis import given
from hypothesis import strategies as st

from pz_models import CheckpointError, UnsupportedConfigError, load, save_huggingface
from pz_models.gguf import GGUFCheckpoint, read_header

gguf = pytest.importorskip("gguf")


@pytest.fixture
def path(tmp_path):
    return tiny.write_gguf(tmp_path / "tiny.gguf")


def _read(checkpoint, key):
    out = np.empty(checkpoint.tensors[key].shape, np.float32)
    checkpoint.read_into(key, out)
    return out


@pytest.mark.smoke
def test_header_says_what_was_written(path):
    header = read_header(path)
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert {name: t.shape for name, t in header.tensors.items()} == tiny.shapes()
    assert {t.storage_type for t in header.tensors.values()} == {"F32"}


@pytest.mark.parametrize("value", [True, 7, 2.5, "text", ["a", "b"], [1, 2, 3]])
def test_metadata_of_every_kind_round_trips(tmp_path, value):
    path = tiny.write_gguf(tmp_path / "x.gguf", tiny.METADATA | {"custom.key": value})
    assert read_header(path).metadata["custom.key"] == value


def test_config_is_spelled_as_huggingface_does(path):
    config = GGUFCheckpoint(path).config
    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 2
    assert config["num_key_value_heads"] == 2
    assert config["head_dim"] == 8
    assert config["tie_word_embeddings"] is True


def test_rows_of_queries_and_keys_are_put_back(path):
    """The converter's own reordering, undone, gives the tensor that HuggingFace has."""
    plain = tiny.random_tensors()["blk.1.attn_q.weight"]
    converted = plain.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32)
    tensors = tiny.random_tensors() | {"blk.1.attn_q.weight": converted}
    checkpoint = GGUFCheckpoint(tiny.write_gguf(path, tensors=tensors))
    np.testing.assert_array_equal(
        _read(checkpoint, "model.layers.1.self_attn.q_proj.weight"), plain
    )


@pytest.mark.parametrize("storage", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_storage_types_come_out_as_the_library_dequantises_them(tmp_path, storage):
    path = tiny.write_gguf(tmp_path / "x.gguf", storage=storage)
    kind = gguf.GGMLQuantizationType[storage]
    value = tiny.random_tensors()["blk.0.ffn_down.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
    checkpoint = GGUFCheckpoint(path)
    assert checkpoint.tensors["model.layers.0.mlp.down_proj.weight"].storage == storage
    np.testing.assert_array_equal(
        _read(checkpoint, "model.layers.0.mlp.down_proj.weight"), expected
    )


@pytest.mark.parametrize("storage", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_blocks_of_any_bytes_come_out_as_the_library_dequantises_them(tmp_path, storage):
    """The library writes none of these types; it only reads them."""
    kind = gguf.GGMLQuantizationType[storage]
    _, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 120, (64, 512 // gguf.GGML_QUANT_SIZES[kind][0] * bytes_per_block), np.uint8)  # fmt: skip
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in tiny.METADATA.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = GGUFCheckpoint(path)
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (64, 512)
    np.testing.assert_array_equal(
        _read(checkpoint, "model.embed_tokens.weight"), gguf.quants.dequantize(blocks, kind)
    )


def _with_divisors(tmp_path, divisors, **metadata):
    tensors = tiny.random_tensors() | {"rope_freqs.weight": np.asarray(divisors, np.float32)}
    changes = {f"llama.rope.scaling.{key}": value for key, value in metadata.items()}
    return tiny.write_gguf(tmp_path / "x.gguf", tiny.METADATA | changes, tensors)


def test_divisors_of_rotary_frequencies_become_configuration(tmp_path):
    config = GGUFCheckpoint(_with_divisors(tmp_path, [1, 1, 2.5, 8])).config
    assert config["rope_scaling"]["rope_type"] == "longrope"
    assert config["rope_scaling"]["long_factor"] == [1.0, 1.0, 2.5, 8.0]
    assert config["rope_scaling"]["attention_factor"] == 1.0


@pytest.mark.parametrize(
    "divisors, metadata, message",
    [
        ([1, 2, 3], {}, r"'rope_freqs.weight' should be F32 of shape \(4,\)"),
        ([1, 2, 3, 4], {"type": "linear", "factor": 2.0}, "without rope.scaling.type beside it"),
        ([1, 2, 3, -4], {}, "should hold positive numbers"),
        ([1, 2, 3, np.nan], {}, "should hold positive numbers"),
    ],
)
def test_bad_divisors_of_rotary_frequencies(tmp_path, divisors, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        GGUFCheckpoint(_with_divisors(tmp_path, divisors, **metadata))


def test_rotary_scaling_in_metadata_becomes_configuration(tmp_path):
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 32, "finetuned": True}
    changes = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    path = tiny.write_gguf(tmp_path / "x.gguf", tiny.METADATA | changes)
    assert GGUFCheckpoint(path).config["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32
    }  # fmt: skip


@pytest.mark.parametrize("blocks, scalar", [(46, 8), (2, 6)])
def test_the_scale_of_gemma_s_queries_is_derived(tmp_path, blocks, scalar):
    """As llama.cpp does it: 27B (46 blocks) by hidden size over heads, others by a head's size."""
    metadata = {k.replace("llama.", "gemma2."): v for k, v in tiny.METADATA.items()}
    metadata |= {"general.architecture": "gemma2", "gemma2.block_count": blocks}
    metadata |= {"gemma2.attention.key_length": 6, "gemma2.rope.dimension_count": 6}
    path = tiny.write_gguf(tmp_path / "x.gguf", metadata, {"token_embd.weight": np.ones((64, 32), np.float32)})  # fmt: skip
    config = GGUFCheckpoint(path).config
    assert config["query_pre_attn_scalar"] == scalar
    assert config["tie_word_embeddings"] is True


def test_a_large_tensor_is_read_without_a_second_copy(tmp_path):
    metadata = tiny.METADATA | {"llama.vocab_size": 1 << 18}
    big = np.ones((1 << 18, 32), np.float32)  # 32 MiB
    path = tiny.write_gguf(
        tmp_path / "x.gguf", metadata, tiny.random_tensors() | {"token_embd.weight": big}, "Q8_0"
    )
    checkpoint, out = GGUFCheckpoint(path), np.empty(big.shape, np.float32)
    tracemalloc.start()
    checkpoint.read_into("model.embed_tokens.weight", out)
    peak = tracemalloc.get_traced_memory()[1]
    whole = np.empty(big.shape, np.float32)  # companion: the measure sees numpy's memory
    assert tracemalloc.get_traced_memory()[1] >= whole.nbytes
    tracemalloc.stop()
    np.testing.assert_allclose(out, big, atol=1e-2)
    assert peak < big.nbytes


BAD_METADATA = [
    ({"general.architecture": "lama"}, UnsupportedConfigError, "'lama'.*Did you mean 'llama'"),
    ({"llama.expert_count": 8}, UnsupportedConfigError, "llama.expert_count' is 8"),
    ({"llama.rope.dimension_count": 4}, UnsupportedConfigError, "dimension_count' is 4.*expects 8"),
    ({"llama.secret": 1}, UnsupportedConfigError, "llama.secret' is 1"),
    ({"llama.block_count": 0}, CheckpointError, "block_count' is 0.*positive"),
    ({"llama.block_count": "two"}, CheckpointError, "block_count' is 'two'"),
    ({"general.alignment": 3}, CheckpointError, "alignment is 3, not a power of two"),
]


@pytest.mark.parametrize("change, error, message", BAD_METADATA)
def test_metadata_that_is_not_understood_is_refused(tmp_path, change, error, message):
    path, metadata = tmp_path / "x.gguf", tiny.METADATA | change
    if "general.alignment" in change:  # the writer would use it, so put it in afterwards
        path = tiny.write_gguf(path, tiny.METADATA | {"general.alignmenT": 3})
        path.write_bytes(path.read_bytes().replace(b"general.alignmenT", b"general.alignment"))
    else:
        path = tiny.write_gguf(path, metadata)
    with pytest.raises(error, match=message):
        GGUFCheckpoint(path)


def test_a_missing_field_is_named(tmp_path):
    metadata = {k: v for k, v in tiny.METADATA.items() if k != "llama.embedding_length"}
    path = tiny.write_gguf(tmp_path / "x.gguf", metadata)
    with pytest.raises(
        CheckpointError, match=r"llama.embedding_length' \(hidden_size\) is missing"
    ):
        GGUFCheckpoint(path)


def test_a_surplus_tensor_is_named_with_near_misses(tmp_path):
    tensors = tiny.random_tensors() | {"blk.0.attn_qq.weight": np.ones((2, 2), np.float32)}
    path = tiny.write_gguf(tmp_path / "x.gguf", tensors=tensors)
    with pytest.raises(CheckpointError, match=r"'blk.0.attn_qq.weight'.*attn_q.weight"):
        GGUFCheckpoint(path)


def test_an_unsupported_storage_type_is_named(path, monkeypatch):
    monkeypatch.setattr("pz_models.gguf._READABLE", frozenset({"F16"}))
    with pytest.raises(CheckpointError, match=r"stored as F32, which is not supported.*F16"):
        GGUFCheckpoint(path)


def _with_uint32(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


CORRUPT = {
    "empty": (lambda d: b"", "0 bytes in all"),
    "short": (lambda d: d[:20], "20 bytes in all"),
    "magic": (lambda d: b"GGML" + d[4:], "starts with b'GGML'"),
    "version": (lambda d: _with_uint32(d, 4, 1), "version 1 is not supported"),
    "big-endian": (lambda d: _with_uint32(d, 4, 3 << 24), "big-endian"),
    "many tensors": (lambda d: d[:8] + b"\xff" * 8 + d[16:], "tensors.*needs"),
    "many pairs": (lambda d: d[:16] + b"\xff" * 8 + d[24:], "metadata entries.*needs"),
    "long key": (lambda d: d[:24] + b"\xff" * 8 + d[32:], "name of metadata entry 0.*needs"),
    "cut header": (lambda d: d[:300], "truncated or corrupt"),
    "cut data": (lambda d: d[:-4000], "truncated: tensor .* should end at byte"),
    "key not utf-8": (lambda d: d.replace(b"llama.block_count", b"\xff" * 17), "not UTF-8"),
    "key twice": (
        lambda d: d.replace(b"llama.vocab_size", b"llama.block_cou_"),
        "block_cou_|not understand",
    ),
    "tensor twice": (
        lambda d: d.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"),
        "'blk.0.attn_q.weight' occurs twice",
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_files_are_refused_by_name(path, name):
    change, message = CORRUPT[name]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises((CheckpointError, UnsupportedConfigError), match=message) as caught:
        GGUFCheckpoint(path)
    assert str(path) in str(caught.value)


@given(data=st.data())
def test_no_corruption_crashes_or_balloons(data, tmp_path_factory):
    """Any few bytes changed, or the file cut anywhere: read, or refused, in little memory."""
    folder = tmp_path_factory.getbasetemp()
    original = folder / "fuzz_original.gguf"
    if not original.exists():
        tiny.write_gguf(original)
    raw = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 2200))
        raw[at] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
    (folder / "fuzz.gguf").write_bytes(raw)
    tracemalloc.start()
    try:
        GGUFCheckpoint(folder / "fuzz.gguf")
    except (CheckpointError, UnsupportedConfigError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20


def test_special_tokens_are_kept_when_the_model_is_saved(tmp_path):
    special = {"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.padding_token_id": 9}
    path = tiny.write_gguf(tmp_path / "x.gguf", tiny.METADATA | special)
    save_huggingface(load(path), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {k: v for k, v in config.items() if "token_id" in k} == {
        "eos_token_id": 7,
        "pad_token_id": 9,
    }
