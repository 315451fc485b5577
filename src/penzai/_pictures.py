"""Brings pz-viz along when there is something to draw, and not before.

`from penzai import pz` promises pictures without asking, and promises to be about as quick as
`import jax`. Treescope alone (with IPython, which it loads where that is installed) would cost a
third of jax's time in every training script. But nothing is drawn without treescope. So pz-viz
comes along the moment that treescope does: at once where it is loaded already, else with the
first `pz.show`, `pz.ts` or `show_selection`, or with the user's own `import treescope`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from pz_core import Selection, display_hook

__all__ = ["load_with_treescope"]


def load_with_treescope(namespace: str) -> None:
    """Loads pz-viz and all of `namespace` together with treescope, whenever that is.

    Everything, since round-trip output looks for an object's short name among loaded names, and
    laziness gains nothing any more once treescope is there.

    Args:
      namespace: The module whose lazy names are loaded; it has an `__all__`.
    """
    selection_display = _SelectionDisplay()
    unregister = display_hook.register_selection_display(selection_display)

    def load() -> None:
        unregister()  # pz-viz registers its own
        module = sys.modules[namespace]
        for name in module.__all__:
            getattr(module, name)
        importlib.import_module("pz_viz")

    if "treescope" in sys.modules:
        load()
    else:
        sys.meta_path.insert(0, _AfterImport("treescope", load))


class _SelectionDisplay:
    """What draws selections until pz-viz is there: it fetches pz-viz."""

    def show_selection(self, selection: Selection, *, ignore_exceptions: bool) -> None:
        import pz_viz  # noqa: F401  (registers what draws selections in place of this)

        display_hook.selection_display().show_selection(
            selection, ignore_exceptions=ignore_exceptions
        )

    def show_value(self, selection: Selection, *, ignore_exceptions: bool) -> None:
        import pz_viz  # noqa: F401  (as above)

        display_hook.selection_display().show_value(selection, ignore_exceptions=ignore_exceptions)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function right after a module was imported for the first time.

    It leaves finding and loading to the finders behind it, and takes itself away.
    """

    def __init__(self, module: str, then: Callable[[], None]):
        self.module = module
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenLoader(spec.loader, self.then)
        return spec


class _ThenLoader(importlib.abc.Loader):
    """A loader that does what another does, then calls a function."""

    def __init__(self, loader: importlib.abc.Loader, then: Callable[[], None]):
        self.loader = loader
        self.then = then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is as if nobody had been in between: resources, reloading and
        # tracebacks ask its loader.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then()
