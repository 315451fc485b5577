"""Model surgery, interpretability and training tools for Penzai models."""
