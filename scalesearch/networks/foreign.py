"""The cost of any timm model, counted by fvcore while the model runs once on the CPU.

Counted are the multiply-adds and output elements of convolutions, linear layers and, in models with
attention, matrix products. BatchNorm, pooling and activation functions are not: for a
convolutional network this is `cost_of`'s convention to the unit. Parameters are trainable ones.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn, zeros
from torch.random import fork_rng

from scalesearch.cost import Cost
from scalesearch.errors import ConfigError
from scalesearch.networks.pretrained import import_timm

Handle = Callable[[list[Any], list[Any]], Counter[str]]


def foreign_cost(name: str, resolution: int | None = None) -> Cost:
    """Multiply-adds, parameters and activations of `timm:NAME` at `resolution` (default: its own input size).

    Rows per block are empty. ConfigError for an unknown name, a resolution that the model refuses,
    or where timm is not installed.
    """
    timm = import_timm()
    name = name.removeprefix("timm:")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(f"no timm model '{name}'; " + (f"nearest: {', '.join(close)}" if close else "see timm.list_models()"))
    with _quiet(), fork_rng(devices=[]):
        model, channels, size = _create(timm, name, resolution)
        try:
            macs, activations = count(model, (channels, *size))
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(f"timm:{name} does not run at {size[0]}x{size[1]} ({' '.join(str(error).split())[:120]})") from None
    return Cost(macs, sum(p.numel() for p in model.parameters() if p.requires_grad), activations, size[-1])


def count(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """(multiply-adds, output elements) of one image [channels, height, width] through any CPU module."""
    with _quiet():
        from fvcore.nn.jit_analysis import JitModelAnalysis

        analysis = JitModelAnalysis(model.eval(), (zeros(1, *shape),)).set_op_handle(**_handles())
        totals = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    return int(totals["macs"]), int(totals["activations"])


def _handles() -> dict[str, Handle]:
    """fvcore's own counts of each operation, with the elements of its outputs beside them."""
    from fvcore.nn import jit_handles as fvcore

    counters = {"_convolution": fvcore.conv_flop_jit, "linear": fvcore.linear_flop_jit, "addmm": fvcore.addmm_flop_jit,
                "mm": fvcore.matmul_flop_jit, "matmul": fvcore.matmul_flop_jit, "bmm": fvcore.bmm_flop_jit,
                "einsum": fvcore.einsum_flop_jit}

    def handle(counter: Callable[..., Any]) -> Handle:
        def both(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
            macs = counter(inputs, outputs)
            total = sum(macs.values()) if isinstance(macs, Counter) else macs
            return Counter(macs=int(total), activations=sum(math.prod(fvcore.get_shape(output)) for output in outputs))
        return both

    def attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        query, key, value = (fvcore.get_shape(tensor) for tensor in inputs[:3])
        scores = math.prod(query[:-1]) * key[-2]
        return Counter(macs=scores * (query[-1] + value[-1]), activations=scores + math.prod(fvcore.get_shape(outputs[0])))

    # fvcore knows no fused attention: it is two matrix products, and so are its outputs
    return {**{f"aten::{name}": handle(counter) for name, counter in counters.items()},
            "aten::scaled_dot_product_attention": attention}


def _create(timm: Any, name: str, resolution: int | None) -> tuple[nn.Module, int, tuple[int, int]]:
    """The model, its input channels and its input size; img_size goes to models that fix it when built."""
    own = timm.get_pretrained_cfg(name)
    channels, *size = (own.input_size if own is not None else None) or (3, 224, 224)
    if resolution is None or [resolution, resolution] == size:
        return timm.create_model(name), channels, (size[0], size[1])
    if resolution < 1:
        raise ConfigError(f"resolution={resolution}: at least 1 pixel")
    try:
        model = timm.create_model(name, img_size=resolution)
    except TypeError:  # convolutional networks take any size and have no such argument
        model = timm.create_model(name)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"timm:{name} does not take resolution={resolution} ({error}); its own is {size[0]}") from None
    return model, channels, (resolution, resolution)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of imports and tracing: they are about export, not about counting."""
    loggers = [logging.getLogger(name) for name in ("fvcore", "fvcore.nn.jit_analysis", "timm")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
