"""Compiled generation: equal to doing it by hand, whatever the prompt, the bucket and the stop."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_families import RandomCheckpoint, config_of

from pz_core.selectors import select
from pz_models import Generation, PromptError, _decoding, generate, generation
from pz_models.loading import model_from_checkpoint
from pz_models.tokenizer import SpecialTokens
from pz_models.transformer.variants import llamalike_common as ll
from pz_named import named_axes as nx
from pz_nn.linear_and_affine import ConstantRescale
from pz_nn.rope_scaling import DynamicScaling

PROMPT = [3, 14, 15, 9, 26]


@pytest.fixture(scope="module")
def model():
    return tiny.build(jax.random.key(0), use_layer_stack=True)


def _check_greedy(model, prompt, result):
    """Each new token is the likeliest one after what stands before it, by one uncached call."""
    whole = np.zeros(32, int)  # one length for all, so that one program serves
    count = len(prompt) + len(result.tokens)
    whole[:count] = [*prompt, *result.tokens]
    logits = tiny.logits(model, nx.wrap(jnp.asarray(whole), "seq"))[len(prompt) - 1 : count - 1]
    np.testing.assert_array_equal(logits.argmax(-1), result.tokens)
    expected = jax.nn.log_softmax(logits)[np.arange(len(logits)), list(result.tokens)]
    np.testing.assert_allclose(result.log_probabilities, expected, atol=1e-4)


VARIANTS = {
    "stacked": {"use_layer_stack": True},
    "unstacked": {},
    "window": {"attention_type": ll.AttentionTypeSlidingWindowCausal(3)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_equals_uncached(key, variant):
    model = tiny.build(key, **VARIANTS[variant])
    result = generate(model, PROMPT, max_new_tokens=12)
    assert len(result.tokens) == 12
    assert not result.stopped
    _check_greedy(model, PROMPT, result)


def test_rows_of_unequal_length_equal_each_alone(model):
    prompts = [PROMPT, [7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    together = generate(model, prompts, max_new_tokens=6)
    for prompt, result in zip(prompts, together, strict=True):
        _check_greedy(model, prompt, result)
    assert generate(model, np.array([PROMPT, PROMPT]), max_new_tokens=6)[0] == together[0]


def test_prompts_of_every_form_give_the_same(model):
    expected = generate(model, PROMPT, max_new_tokens=4)
    named = nx.wrap(jnp.array(PROMPT), "seq")
    for prompt in (tuple(PROMPT), np.array(PROMPT), jnp.array(PROMPT), named):
        assert generate(model, prompt, max_new_tokens=4) == expected
    assert generate(model, named[None].tag("batch"), max_new_tokens=4) == [expected]


def test_caches_grow_without_changing_anything(model, monkeypatch):
    expected = generate(model, PROMPT, max_new_tokens=20)
    monkeypatch.setattr(generation, "_SMALLEST_CAPACITY", 16)
    grown = generate(model, PROMPT, max_new_tokens=20)
    assert grown.tokens == expected.tokens
    np.testing.assert_allclose(grown.log_probabilities, expected.log_probabilities, atol=1e-4)


def test_a_second_prompt_of_the_bucket_compiles_nothing(model):
    generate(model, PROMPT, max_new_tokens=5)
    sizes = _decoding.prefill._cache_size(), _decoding.decode._cache_size()
    generate(model, [1, 2, 3], max_new_tokens=9, stop=[5])
    assert (_decoding.prefill._cache_size(), _decoding.decode._cache_size()) == sizes
    generate(model, list(range(17)), max_new_tokens=5)  # companion: another bucket does compile
    assert _decoding.prefill._cache_size() == sizes[0] + 1


def test_it_ends_at_a_stop_token_and_includes_it(model):
    free = generate(model, PROMPT, max_new_tokens=12)
    stop = free.tokens[4]
    cut = generate(model, PROMPT, max_new_tokens=12, stop=[stop])
    assert cut.stopped
    assert cut.tokens == free.tokens[: free.tokens.index(stop) + 1]


def test_streaming_hands_on_every_token_once(model):
    received = []
    result = generate(model, PROMPT, max_new_tokens=12, stream=received.append, stream_every=5)
    assert [len(piece) for piece in received] == [5, 5, 2]
    assert [token for piece in received for token in piece] == list(result.tokens)
    assert result == generate(model, PROMPT, max_new_tokens=12)


def test_sampling_follows_the_distribution_and_the_key(model, key):
    rows = [PROMPT] * 500
    draw = generate(model, rows, max_new_tokens=1, temperature=0.5, key=key)
    again = generate(model, rows, max_new_tokens=1, temperature=0.5, key=key)
    assert draw == again
    counts = np.bincount([result.tokens[0] for result in draw], minlength=64) / 500
    logits = tiny.logits(model, nx.wrap(jnp.array(PROMPT), "seq"))[-1]
    expected = np.asarray(jax.nn.softmax(logits / 0.5))
    assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / 500)


def test_edited_models_generate_and_keep_their_state(model):
    edited = select(model).at(lambda m: m.body.sublayers[-2]).insert_before(ConstantRescale(-1.0))
    result = generate(edited, PROMPT, max_new_tokens=4)
    _check_greedy(edited, PROMPT, result)
    assert result.tokens != generate(model, PROMPT, max_new_tokens=4).tokens


@dataclasses.dataclass(frozen=True)
class _Letters:
    """A stand-in for a tokenizer: token i is a letter."""

    special: SpecialTokens = dataclasses.field(default_factory=SpecialTokens)

    def encode(self, text):
        return [ord(letter) - ord("0") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("0") + i) for i in ids)


def test_text_in_text_out_and_stop_strings(model):
    letters, pieces = _Letters(), []
    prompt = letters.decode(PROMPT)
    whole = generate(model, prompt, max_new_tokens=12, tokenizer=letters)
    assert whole.text == letters.decode(whole.tokens)
    stop = whole.text[3:5]
    cut = generate(
        model, prompt, max_new_tokens=12, tokenizer=letters, stop=stop, stream=pieces.append
    )
    assert cut.stopped
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert "".join(pieces) == cut.text


def test_a_stream_holds_back_what_may_begin_a_stop_string(model):
    """Every cut of the stop string by the pieces of the stream: nothing of it is ever shown."""
    letters = _Letters()
    prompt = letters.decode(PROMPT)
    whole = generate(model, prompt, max_new_tokens=12, tokenizer=letters)
    stop = whole.text[3:7]
    for every in (1, 2, 4, 5):
        pieces = []
        cut = generate(
            model, prompt, max_new_tokens=12, tokenizer=letters, stop=[stop, "nowhere"],
            stream=pieces.append, stream_every=every,
        )  # fmt: skip
        assert "".join(pieces) == cut.text == whole.text[: whole.text.index(stop)]
    # What only looked like a beginning is shown in the end.
    pieces, never = [], whole.text[-2:] + "x"
    generate(model, prompt, max_new_tokens=12, tokenizer=letters, stop=never, stream=pieces.append)
    assert "".join(pieces) == whole.text


@pytest.mark.parametrize(
    "text, stops, count",
    [("abc", [], 0), ("abc", ["cde"], 1), ("abc", ["bcd", "cx"], 2), ("aab", ["aab"], 0),
     ("aaa", ["aaab"], 3), ("", ["x"], 0)],
)  # fmt: skip
def test_how_much_of_a_stop_string_has_begun(text, stops, count):
    assert generation._begun(text, stops) == count


def test_frequencies_that_depend_on_the_length_are_fixed_for_each_row(key):
    model = tiny.build(key, rope_scaling=DynamicScaling(2.0, 8), use_layer_stack=True)
    prompts = [PROMPT, list(range(1, 12))]
    together = generate(model, prompts, max_new_tokens=6)
    for prompt, result in zip(prompts, together, strict=True):
        alone = generate(model, prompt, max_new_tokens=6)
        assert alone.tokens == result.tokens
        np.testing.assert_allclose(alone.log_probabilities, result.log_probabilities, atol=1e-4)
    longer = generate(model, PROMPT, max_new_tokens=6, rope_length=17)  # companion: it does matter
    difference = np.subtract(longer.log_probabilities, together[0].log_probabilities)
    assert np.abs(difference).max() > 1e-3


BAD_CALLS = [
    ({"prompt": []}, PromptError, "the prompt is empty"),
    ({"prompt": [[1], []]}, PromptError, "prompt 1 is empty"),
    ({"prompt": "text"}, PromptError, "'text' is text; pass the model's tokenizer"),
    ({"prompt": [1, 64]}, PromptError, "token 64, but the model knows 0 to 63"),
    ({"prompt": np.array([0.5])}, PromptError, "dtype float64"),
    ({"capacity": 8}, PromptError, "5 tokens and max_new_tokens=4 need room for 9.*capacity=8"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    ({"temperature": -1.0}, ValueError, "temperature"),
    ({"temperature": 1.0}, ValueError, "needs a random key"),
    ({"stop": ["x"]}, ValueError, "stop strings .* need tokenizer"),
    ({"prompt": [[1], [2]], "stream": print}, ValueError, "single prompt; received 2"),
]


@pytest.mark.parametrize("changes, error, message", BAD_CALLS)
def test_bad_calls(changes, error, message):
    arguments = {"prompt": PROMPT, "max_new_tokens": 4} | changes
    model = ll.build_llamalike_transformer(tiny.CONFIG)
    with pytest.raises(error, match=message):
        generate(model, **arguments)


def test_learned_positions_are_not_exceeded():
    model = model_from_checkpoint(RandomCheckpoint(config_of("gpt2") | {"n_positions": 8}))
    prompt = [3, 14, 15, 9, 2]
    with pytest.raises(PromptError, match=r"need 9 positions .* has learned 8"):
        generate(model, prompt, max_new_tokens=5)
    result = generate(model, prompt, max_new_tokens=4)
    assert np.isfinite(result.log_probabilities).all()


def test_room_is_enough_when_it_is_exactly_enough(model):
    assert isinstance(generate(model, PROMPT, max_new_tokens=4, capacity=9), Generation)


@pytest.mark.parametrize("stacked", [True, False])
def test_decoding_copies_no_cache(key, stacked, monkeypatch):
    """Nothing in the compiled loop is a copy of a cache (2,048 places: 750 MB a token at 135M)."""
    programs, decode = [], _decoding.decode

    def spy(*args, capacity, **options):
        lowered = decode.lower(*args, capacity=capacity, **options)
        programs.append((capacity, lowered.compile().as_text()))
        return decode(*args, capacity=capacity, **options)

    monkeypatch.setattr(_decoding, "decode", spy)
    generate(tiny.build(key, use_layer_stack=stacked), PROMPT, max_new_tokens=8)
    ((capacity, program),) = programs
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* (\S+)\(", program)
    with_capacity = {op for shape, op in shapes if str(capacity) in shape.split(",")[1:]}
    assert "dynamic-update-slice" in with_capacity
    assert "copy" not in with_capacity
