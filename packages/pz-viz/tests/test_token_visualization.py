"""Token figures as text: what is written, in which order, and what does not fit."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import treescope

import pz_named as nx
import pz_viz
from pz_viz.token_visualization import SentencePieceProcessorLike

PIECES = ["<pad>", "<bos>", "the", "▁cat", "'x", "\n", "a\"b'"]


class Processor:
    def GetPieceSize(self):
        return len(PIECES)

    def IdToPiece(self, id):
        return PIECES[id]

    def IsControl(self, id):
        return id < 2


def text_of(figure):
    return treescope.lowering.render_to_text_as_root(figure.treescope_part)


def words_of(figure):
    return [line.split() for line in text_of(figure).splitlines() if line.strip()]


@pytest.mark.smoke
def test_blocks_are_headed_by_their_index_and_escapes_are_visible():
    tokens = nx.wrap(jnp.array([[1, 2, 3], [4, 5, 6]])).tag("batch", "seq")
    assert words_of(pz_viz.show_token_array(tokens, Processor())) == [
        ["{'batch':", "0}:"],
        ["1", "<bos>", "2", "the", "3", "▁cat"],
        ["{'batch':", "1}:"],
        ["4", "'x", "5", "\\n", "6", "a\"b\\'"],
    ]


def test_order_of_names_may_be_chosen():
    tokens = nx.wrap(jnp.array([[1, 2, 3], [4, 5, 6]])).tag("seq", "batch")
    assert words_of(pz_viz.show_token_array(tokens, Processor()))[1] == ["1", "<bos>", "4", "'x"]
    turned = pz_viz.show_token_array(tokens, Processor(), axis_name_order=["seq", "batch"])
    assert words_of(turned)[1] == ["1", "<bos>", "2", "the", "3", "▁cat"]
    with pytest.raises(ValueError, match=r"axis_name_order=\['seq'\]: it must list every axis"):
        pz_viz.show_token_array(tokens, Processor(), axis_name_order=["seq"])


def test_plain_arrays_scalars_and_ids_out_of_range():
    assert words_of(pz_viz.show_token_array(np.array([2, 99]), Processor())) == [
        ["2", "the", "99", "<id", "99", "is", "out", "of", "range>"]
    ]
    assert words_of(pz_viz.show_token_array(jnp.array(2), Processor())) == [["2", "the"]]
    two = pz_viz.show_token_array(np.array([[1, 2]]), PIECES)
    assert words_of(two)[0] == ["{'axis0':", "0}:"]


def test_scores_are_shown_on_the_pieces():
    tokens = nx.wrap(jnp.array([[1, 2], [3, 5]])).tag("batch", "seq")
    scores = nx.wrap(jnp.array([[0.5, -1.0], [2.0, 0.0]])).tag("batch", "seq")
    figure = pz_viz.show_token_scores(tokens, scores, Processor())
    assert "▁cat\\n" in text_of(figure)
    html = treescope.lowering.render_to_html_as_root(figure.treescope_part)
    assert re.search(r"[\"'> ]-1(\.0*)?[\"'< ]", html)
    per_batch = nx.wrap(jnp.array([1.0, -1.0])).tag("batch")
    assert text_of(pz_viz.show_token_scores(tokens, per_batch, Processor()))


@pytest.mark.parametrize("scores", [np.zeros(3), np.array([np.nan, 1.0, np.inf])])
def test_scores_without_a_scale_are_drawn(scores):
    assert "the" in text_of(pz_viz.show_token_scores(np.array([1, 2, 3]), scores, Processor()))


def test_scores_with_other_axes_are_an_error():
    tokens = nx.wrap(jnp.array([[1, 2], [3, 5]])).tag("batch", "seq")
    with pytest.raises(ValueError, match=r"scores has the axis 'axis0' of size 2.*tag"):
        pz_viz.show_token_scores(tokens, np.zeros((2, 2)), Processor())
    fixed = nx.wrap(jnp.zeros((2, 2))).tag("batch", "seq")
    assert pz_viz.show_token_scores(tokens, fixed, Processor())


def test_tokens_must_be_integers_and_readable():
    with pytest.raises(ValueError, match="expected integer ids, got float32"):
        pz_viz.show_token_array(jnp.ones(3), Processor())
    gone = jnp.arange(3) + 0
    gone.delete()
    with pytest.raises(pz_viz.HostCopyError, match="deleted"):
        pz_viz.show_token_array(gone, Processor())


def test_the_protocol_describes_the_processor():
    assert isinstance(Processor(), SentencePieceProcessorLike)
