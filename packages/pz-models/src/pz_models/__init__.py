"""Transformer models from real checkpoints, as editable Penzai layers."""
