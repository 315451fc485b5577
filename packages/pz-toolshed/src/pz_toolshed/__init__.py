"""Model surgery, interpretability and training tools for Penzai models.

Each tool is a module of its own, imported on its own (`from pz_toolshed import lora`), so that
a tool with an optional dependency costs nothing to those who do not use it.
"""

__all__ = ()
