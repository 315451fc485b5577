"""A notebook runs headless, and its outputs are what a reader expects to see."""

import os
import pathlib

import pytest

SETUP = """
import jax.numpy as jnp, numpy as np
import pz_core, pz_named as nx, pz_viz
from pz_core.struct import Struct, pytree_dataclass
from pz_viz import compatibility
compatibility.basic_interactive_setup(autovisualize_arrays=True)

@pytree_dataclass
class Pair(Struct):
    a: object
    b: object

model = [Pair(nx.wrap(jnp.ones((3, 4))).tag("x", "y"), i) for i in range(20)]
"""

CELLS = [
    SETUP,
    "model",
    "pz_viz.show('words', model[0])",
    "pz_core.select(model).at_instances_of(Pair).pick_nth_selected(3)",
    "pz_core.select(model).at_instances_of(int).show_selection()",
    "pz_viz.attention_view(np.tril(np.ones((2, 3, 3))), ['a', 'b', 'c'])",
    "pz_viz.summary(model, depth=0)",
    "pz_viz.show_diff([1, 2], [1, 3])",
    "pz_viz.show_token_array(np.arange(2), ['<b>', 'y'])",
    "%%autovisualize False\nmodel[0]",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    folder = tmp_path_factory.mktemp("notebook")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder)}
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(cwd=str(folder), env=environment)
    pathlib.Path(folder / "run.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")
    return [cell.outputs for cell in notebook.cells]


def html_of(cell):
    return "".join(o.data.get("text/html", "") for o in cell if "data" in o)


def text_of(cell):
    return "".join(o.data.get("text/plain", "") for o in cell if "data" in o)


def test_no_cell_failed_or_warned(outputs):
    for cell in outputs:
        assert not [o for o in cell if o.output_type in ("error", "stream")], cell


@pytest.mark.parametrize("index", [1, 2, 3, 4, 8, 9])
def test_trees_and_figures_are_drawn_by_treescope(outputs, index):
    assert "treescope-container" in html_of(outputs[index]) or "treescope" in html_of(
        outputs[index]
    )


@pytest.mark.parametrize("index, words", [(5, "Attention"), (6, "Summary"), (7, "What changed")])
def test_views_stand_in_frames_and_print_as_text(outputs, index, words):
    assert html_of(outputs[index]).startswith("<iframe")
    assert 'sandbox="allow-scripts"' in html_of(outputs[index])
    assert words in text_of(outputs[index])


def test_structs_have_a_short_text_too(outputs):
    assert "Pair(a=" in text_of(outputs[1])
    assert len(text_of(outputs[1])) < 10_000
