"""Treescope views of Penzai models, selections, named arrays and tokens."""

from pz_viz._install import install as install
from pz_viz.aliases import add_public_names as add_public_names
from pz_viz.attention import attention_view as attention_view
from pz_viz.compatibility import basic_interactive_setup as basic_interactive_setup
from pz_viz.compatibility import display as display
from pz_viz.compatibility import load_ipython_extension as load_ipython_extension
from pz_viz.compatibility import register_as_default as register_as_default
from pz_viz.compatibility import show as show
from pz_viz.diffs import show_diff as show_diff
from pz_viz.effects import effect_view as effect_view
from pz_viz.host_copies import HostCopyError as HostCopyError
from pz_viz.logit_lens import logit_lens_view as logit_lens_view
from pz_viz.pages import Section as Section
from pz_viz.pages import report as report
from pz_viz.pages import to_html as to_html
from pz_viz.repeated_siblings import folding as folding
from pz_viz.selections import selection_to_html as selection_to_html
from pz_viz.selections import selection_to_text as selection_to_text
from pz_viz.summaries import rich_summary as rich_summary
from pz_viz.summaries import summary as summary
from pz_viz.summaries import summary_rows as summary_rows
from pz_viz.token_probabilities import comparison_view as comparison_view
from pz_viz.token_probabilities import token_probabilities_view as token_probabilities_view
from pz_viz.token_visualization import show_token_array as show_token_array
from pz_viz.token_visualization import show_token_scores as show_token_scores
from pz_viz.views import View as View
from pz_viz.views import side_by_side as side_by_side

__all__ = [
    "HostCopyError",
    "Section",
    "View",
    "add_public_names",
    "attention_view",
    "basic_interactive_setup",
    "comparison_view",
    "display",
    "effect_view",
    "folding",
    "install",
    "load_ipython_extension",
    "logit_lens_view",
    "register_as_default",
    "report",
    "rich_summary",
    "selection_to_html",
    "selection_to_text",
    "show",
    "show_diff",
    "show_token_array",
    "show_token_scores",
    "side_by_side",
    "summary",
    "summary_rows",
    "to_html",
    "token_probabilities_view",
]

install()
