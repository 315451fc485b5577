"""The alias namespace `pz.ts`: treescope's names, where Penzai has always offered them."""

from treescope import ArrayAutovisualizer as ArrayAutovisualizer
from treescope import Autovisualizer as Autovisualizer
from treescope import ChildAutovisualizer as ChildAutovisualizer
from treescope import IPythonVisualization as IPythonVisualization
from treescope import active_autovisualizer as active_autovisualizer
from treescope import active_expansion_strategy as active_expansion_strategy
from treescope import active_renderer as active_renderer
from treescope import default_diverging_colormap as default_diverging_colormap
from treescope import default_magic_autovisualizer as default_magic_autovisualizer
from treescope import default_sequential_colormap as default_sequential_colormap
from treescope import integer_digitbox as integer_digitbox
from treescope import register_autovisualize_magic as register_autovisualize_magic
from treescope import register_context_manager_magic as register_context_manager_magic
from treescope import render_array as render_array
from treescope import render_array_sharding as render_array_sharding
from treescope import render_to_html as render_to_html
from treescope import render_to_text as render_to_text
from treescope import using_expansion_strategy as using_expansion_strategy
from treescope.figures import bolded as bolded
from treescope.figures import indented as indented
from treescope.figures import inline as inline
from treescope.figures import styled as styled
from treescope.figures import text_on_color as text_on_color
from treescope.figures import with_color as with_color
from treescope.figures import with_font_size as with_font_size

from pz_viz.compatibility import basic_interactive_setup as basic_interactive_setup
from pz_viz.compatibility import display as display
from pz_viz.compatibility import register_as_default as register_as_default

vocab_autovisualizer = ArrayAutovisualizer.for_tokenizer
