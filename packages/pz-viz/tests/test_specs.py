"""Array specs and wildcards in every mode."""

import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from viz_hostile import checked
from viz_samples import HOSTILE

import pz_named
import pz_viz
from pz_named import shapecheck


def dims():
    n, T = shapecheck.var("n"), shapecheck.var("T")
    rest, B, emb = shapecheck.var("rest"), shapecheck.var("B"), shapecheck.var("emb")
    return n, T, rest, B, emb


def expanded(value):
    part = treescope.active_renderer.get().to_foldable_representation(value)
    [foldable] = part.renderable.foldables_in_this_part()
    foldable.set_expand_state(treescope.rendering_parts.ExpandState.EXPANDED)
    return treescope.lowering.render_to_text_as_root(part.renderable)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda n, T, rest, B, emb: shapecheck.ArraySpec(
                (2, n, *rest), np.integer, {"seq": T, **B, "d": 8, "k": emb["k"]}
            ),
            "<ArraySpec integer(2, {n}, *{rest…} | seq:{T}, **{B:…}, d:8, k:{emb/k})>",
        ),
        (lambda *_: shapecheck.ArraySpec((2, 3), jnp.float32), "<ArraySpec float32(2, 3)>"),
        (lambda *_: shapecheck.ArraySpec(named_shape={"foo": 5}), "<ArraySpec any(| foo:5)>"),
        (lambda *_: shapecheck.ArraySpec(), "<ArraySpec any()>"),
        (
            lambda *_: shapecheck.ArraySpec((shapecheck.KnownDim("d", 4),), jnp.bfloat16),
            "<ArraySpec bfloat16(4)>",
        ),
        (lambda *_: shapecheck.ANY, "*"),
        (lambda *_: shapecheck.Wildcard("the input"), "<the input>"),
        (lambda n, *_: n, "DimVar(name='n')"),
    ],
)
def test_short_form(make, text):
    assert treescope.render_to_text(make(*dims())) == text


def test_open_form_shows_the_fields():
    spec = shapecheck.ArraySpec((2, 3), np.floating, {"a": 4})
    assert expanded(spec).splitlines()[:2] == ["ArraySpec(", "  shape=(2, 3),"]
    assert "  named_shape={'a': 4}," in expanded(spec)


@pytest.mark.parametrize(
    "value",
    [
        shapecheck.ArraySpec((2, 3), np.float32),
        shapecheck.ArraySpec((), np.generic, {"a": shapecheck.var("n")}),
        shapecheck.Wildcard("the input"),
        shapecheck.ANY,
    ],
)
def test_roundtrip_text_evaluates_to_an_equal_object(value):
    import jax
    import numpy

    text = treescope.render_to_text(value, roundtrip_mode=True)
    assert eval(text, {"pz_named": pz_named, "numpy": numpy, "jax": jax}) == value


def test_hostile_names_stay_text():
    specs = [shapecheck.ArraySpec(named_shape={t: shapecheck.DimVar(t)}) for t in HOSTILE]
    page = checked(pz_viz.to_html([specs, [shapecheck.Wildcard(t) for t in HOSTILE]]))
    assert page.tags.count("script") == 1
