"""Structs and variables as text, in every mode, reviewed by eye."""

import jax.numpy as jnp
import pytest
import treescope
from viz_samples import (
    Chain,
    Collapsing,
    Colored,
    Custom,
    Empty,
    Hidden,
    Linear,
    Noted,
    Span,
    linear,
)

import pz_viz
from pz_core.variables import Parameter, ParameterSlot, StateVariable
from pz_viz import repeated_siblings


def collapsed(value):
    with treescope.using_expansion_strategy(max_height=1, relax_for_only_child=False):
        return treescope.render_to_text(value)


def expanded(value, roundtrip=False):
    with treescope.using_expansion_strategy(max_height=None, target_width=0):
        return treescope.render_to_text(value, roundtrip_mode=roundtrip)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "value, expected",
    [
        (Span(1, 2), "Span(lo=1, hi=2, unit='m')"),
        (Empty(), "Empty()"),
        (Hidden(), "Hidden(x=1)"),
        (Custom(3), "Custom(doubled=6)"),
        (
            Span(Span(1, None), (True,)),
            "Span(lo=Span(lo=1, hi=None, unit='m'), hi=(True,), unit='m')",
        ),
        (ParameterSlot(label="w"), "ParameterSlot(label='w')"),
        (
            StateVariable(jnp.ones(()), label="s"),
            "StateVariable(label='s', value=<jax.Array(1., dtype=float32)>, metadata={})",
        ),
    ],
)
def test_closed_structs_print_as_one_constructor_call(value, expected):
    assert collapsed(value) == expected


@pytest.mark.smoke
def test_open_structs_print_one_field_per_line():
    assert expanded(Span(1, 2)) == "Span(\n  lo=1,\n  hi=2,\n  unit='m',\n)"
    assert expanded(Hidden()) == "Hidden(\n  x=1,\n)"


def test_roundtrip_mode_qualifies_names_and_shows_hidden_fields():
    assert expanded(Hidden(), True) == ("viz_samples.Hidden(\n  before=0,\n  x=1,\n  after=2,\n)")
    assert treescope.render_to_text(Hidden(), True) == "viz_samples.Hidden(before=0, x=1, after=2)"


def test_roundtrip_mode_names_the_way_back_for_custom_constructors():
    text = treescope.render_to_text(Custom(3), roundtrip_mode=True)
    assert text == "viz_samples.Custom.from_attributes(doubled=6)"
    import viz_samples

    assert eval(text, {"viz_samples": viz_samples}) == Custom(3)


def test_a_missing_field_is_noted_when_open_and_leaves_no_comma_when_closed():
    broken = object.__new__(Span)
    broken.__dict__["lo"] = 1
    broken.__dict__["unit"] = "m"
    assert collapsed(broken) == "Span(lo=1, unit='m')"
    assert expanded(broken) == "Span(\n  lo=1,\n  # hi is missing,\n  unit='m',\n)"
    last = object.__new__(Span)
    last.__dict__.update(lo=1, unit="m")
    object.__setattr__(last, "hi", 2)
    del last.__dict__["lo"]
    assert collapsed(last) == "Span(hi=2, unit='m')"


def test_a_field_may_start_closed_whatever_the_layout():
    assert expanded(Collapsing([1, 2])) == "Collapsing(\n  shape=[1, 2],\n)"


def test_only_child_fields_are_italic():
    html = treescope.render_to_html(Span(1, 2), compressed=False)
    for name, italic in (("lo=", True), ("hi=", True), ("unit=", False)):
        before = html[: html.index(f">{name}") if f">{name}" in html else html.index(name)]
        assert before.endswith('#00225f)"') is italic


@pytest.mark.parametrize(
    "color, shown",
    [("red", "--block-color: red;"), (("blue", "white"), "linear-gradient(white,white)")],
)
def test_colors_are_drawn(color, shown):
    assert shown in treescope.render_to_html(Colored(color), compressed=False)


def test_transparent_is_no_color():
    assert "--block-color: transparent" not in treescope.render_to_html(Colored(), compressed=False)


@pytest.mark.parametrize("color", [3, ("a", "b", "c"), 'red"><script>', ("red", "x;y")])
def test_an_impossible_color_warns_and_is_left_out(color):
    with pytest.warns(UserWarning, match=r"Colored\.treescope_color\(\) returned .*neither a CSS"):
        html = treescope.render_to_html(Colored(color), compressed=False)
    assert "<script>" not in html.split("<template>")[1].split("Colored")[1]


def test_a_shared_parameter_is_marked_once_per_place():
    shared = linear("shared").weights
    text = expanded(Chain([Linear(shared), Linear(shared)]))
    assert text.count("# Repeated python obj") == 2  # and none for the metadata that comes along


def test_a_bound_variable_is_bracketed_in_roundtrip_mode():
    text = treescope.render_to_text(Parameter(label="w", value=jnp.ones(())), roundtrip_mode=True)
    assert text == (
        "<pz_core.variables.Parameter(\n  label='w',\n  value=<jax.Array(1., dtype=float32)>,\n"
        "  metadata={},\n)>"
    )


def test_deep_structs_are_cut_with_a_note():
    deep = Span(0, 0)
    for _ in range(200):
        deep = Span(deep, 0)
    text = treescope.render_to_text(deep)
    assert "more than 24 levels deep, not drawn" in text


def test_a_tree_that_branches_without_end_is_cut_with_a_note():
    tree = Span(0, 0)
    for _ in range(40):
        tree = Span(tree, tree)  # 2**40 places
    with repeated_siblings.limited_to(repeated_siblings.TreeLimits(nodes=200)):
        text = treescope.render_to_text(tree)
    assert "more than 200 nodes in one display, not drawn" in text


def test_deep_containers_fit_the_stack_of_a_notebook():
    deep = Chain([1])
    for _ in range(100):
        deep = Chain([{"a": deep}])

    def below(frames):
        return pz_viz.to_html(deep) if frames == 0 else below(frames - 1)

    assert "deeper than Python&#x27;s stack allows, not drawn" in below(100)


def test_a_class_that_only_names_a_role_says_of_what():
    noted = Noted([1])
    assert expanded(noted).splitlines()[0] == "Noted( # Chain"
    assert collapsed(noted) == "Noted(sublayers=[1])"
