"""Named-axis arrays for JAX: operations by axis name, lifting, shape checking."""
