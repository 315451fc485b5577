"""Every view, fed with hostile text, and a check of what becomes of it."""

import html.parser
from typing import Any

import jax.numpy as jnp
import numpy as np
from viz_samples import HOSTILE, Span

import pz_named as nx
import pz_viz
from pz_core.selectors import select

VOID = {"meta", "input", "img", "br", "hr", "link"}


class Checker(html.parser.HTMLParser):
    """Collects the elements of a page and fails on tags that do not match."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:  # treescope closes its inputs
            return
        assert self.open[-1:] == [tag], (tag, self.open[-5:])
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


def checked(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def hostile_views() -> dict[str, Any]:
    """Every view, fed with hostile text wherever it takes text."""
    count = len(HOSTILE)
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((count, count)))
    logits = rng.normal(size=(2, count, count)).astype(np.float32)
    axis = nx.wrap(jnp.ones((count,))).tag(HOSTILE[1])
    return {
        "Object": {text: [text, Span(text, axis, text)] for text in HOSTILE},
        "Attention": pz_viz.attention_view(weights, HOSTILE, title=HOSTILE[0]),
        "Lens": pz_viz.logit_lens_view(
            logits, HOSTILE, tokens=HOSTILE, block_labels=HOSTILE[:2], title=HOSTILE[1]
        ),
        "Surprise": pz_viz.token_probabilities_view(
            np.arange(count), logits[0], HOSTILE, title=HOSTILE[2]
        ),
        "Comparison": pz_viz.comparison_view(
            logits[0, 0], logits[1, 0], HOSTILE, names=(HOSTILE[0], HOSTILE[6]), title=HOSTILE[3]
        ),
        "Difference": pz_viz.show_diff(
            {text: text for text in HOSTILE}, {text: [text] for text in HOSTILE}, title=HOSTILE[5]
        ),
        "Effects": pz_viz.effect_view(axis, labels={HOSTILE[1]: HOSTILE}, title=HOSTILE[4]),
        "Summary": pz_viz.summary({text: axis for text in HOSTILE}, title=HOSTILE[7]),
        "Tokens": pz_viz.show_token_array(np.arange(count), HOSTILE),
        "Scores": pz_viz.show_token_scores(np.arange(count), np.arange(count), HOSTILE),
        "Selection": select({text: Span(text, [axis], text) for text in HOSTILE}).at_instances_of(
            list
        ),
        "Side by side": pz_viz.side_by_side(
            {text: pz_viz.summary({text: axis}) for text in HOSTILE[:2]}, title=HOSTILE[6]
        ),
        HOSTILE[3]: HOSTILE[8],
    }
