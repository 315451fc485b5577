"""One of two processes that share an array over loopback, and draw it.

python viz_two_processes.py PORT PROCESS
"""

import sys

import jax
import numpy as np
import pytest
import treescope
from jax.sharding import NamedSharding, PartitionSpec

import pz_named as nx
import pz_viz
from pz_core.selectors import select


def main(port, process):
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("x",), ()))
    values = np.arange(8, dtype=np.float32)

    def across(sharding):
        return jax.make_array_from_callback((8,), sharding, lambda index: values[index])

    plain = across(split)
    assert not plain.is_fully_addressable
    named, copied = nx.wrap(plain, "a"), nx.wrap(across(whole), "a")
    model = {"named": named, "plain": plain, "copied": copied}
    text = treescope.render_to_text(model)
    assert "<NamedArray float32(| a:8) - multi-host array! (wrapping jax.Array)>" in text, text
    assert "jax.Array float32(8,) - multi-host" in text, text
    assert "zero:1 nonzero:7" in text, text  # each process holds all of what is replicated
    summary = pz_viz.summary(model).text
    assert "a:x" in summary, summary
    for page in (
        pz_viz.to_html(model),
        pz_viz.to_html(model, static=True),
        pz_viz.to_html(pz_viz.show_diff(model, {**model, "named": copied})),
        pz_viz.to_html(select(model).at(lambda tree: tree["named"])),
    ):
        assert "multi-host" in page
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        assert "multi-host" in treescope.render_to_text(model)
    with pytest.raises(pz_viz.HostCopyError, match="multi-host"):
        pz_viz.effect_view(named)
    print("drawn", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
