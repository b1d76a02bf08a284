"""The network of the federation, for its clients and for `gifd invert`."""

import gifd


def model() -> gifd.Model:
    """A small network; stands for yours."""
    return gifd.Model(module=gifd.ConvNet(10).eval())
