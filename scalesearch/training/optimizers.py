"""The recipe's optimiser, and RMSProp as TensorFlow defines it.

Every step is a few calls for all parameters together, reads nothing back from the device, and takes
its learning rate as a number or as a tensor of no dimensions, so that a CUDA graph can hold it.
torch's fused kernels serve sgd and adamw on CPU and GPU: on one core they take a third of the time of
the multi-tensor form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scalesearch.training.recipe import Recipe, peak_rate

# TensorFlow's `decay` in the papers' recipe: the share of the mean square that stays.
ALPHA = 0.9
# The papers' code; torch's and TensorFlow's own defaults are far smaller.
RMSPROP_EPS = 1e-3
# Numbers updated together on a CPU: what RMSpropTF reads and writes for them stays in a core's cache.
_CACHED = 2**17

Tensors = tuple[Tensor, ...] | list[Tensor]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over two groups of parameters: with weight decay and without.

    The model is on its device already. Take a step before recording one in a CUDA graph: the first
    makes the state.
    """
    with_decay, without = decay_groups(model, recipe.decay_biases)
    groups: Any = [{"params": with_decay, "weight_decay": recipe.weight_decay}, {"params": without, "weight_decay": 0.0}]
    rate, recorded = peak_rate(recipe), recipe.graph and any(p.is_cuda for p in with_decay)
    if recipe.optimizer == "rmsprop_tf":
        return RMSpropTF(groups, lr=rate, momentum=recipe.momentum)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=ALPHA, eps=RMSPROP_EPS, momentum=recipe.momentum, foreach=True,
                                   capturable=recorded)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(recipe.momentum, 0.999), fused=True, capturable=recorded)
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)


def decay_groups(model: nn.Module, biases: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters with weight decay, all others), in the model's order.

    Weights of convolutions and linear layers decay; with `biases` their biases do too, which here are
    those of squeeze-excite and the classifier. What BatchNorm learns never does.
    """
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        is_layer = isinstance(weight, Tensor) and weight.ndim > 1
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:  # a weight may be shared
                decays = parameter.ndim > 1 or (biases and is_layer and name == "bias")
                (with_decay if decays else without).append(parameter)
                seen.add(parameter)
    return with_decay, without


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp with momentum in TensorFlow's form, which the EfficientNet papers trained with.

        gradient ← gradient + weight_decay·weight
        square   ← alpha·square + (1 - alpha)·gradient²                  from 1
        velocity ← momentum·velocity + lr·gradient / √(square + eps)     from 0
        weight   ← weight - velocity

    torch.optim.RMSprop differs in three places: eps outside the root, squares from 0, and the learning
    rate outside the velocity, so that there a new rate changes what older gradients still do. The same
    numbers as timm.optim.RMSpropTF (a test compares them), in two thirds of its time on a CPU. `lr` may be a
    tensor of no dimensions on the parameters' device.
    """

    def __init__(self, params: Any, lr: float | Tensor = 0.01, alpha: float = ALPHA, eps: float = RMSPROP_EPS, momentum: float = 0.9,
                 weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with the gradients that are there; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _parts([p for p in group["params"] if p.grad is not None]):
                states = [self.state[p] or self._first_state(p) for p in weights]
                _update(weights, [p.grad for p in weights if p.grad is not None], [s["square_avg"] for s in states],
                        [s["momentum_buffer"] for s in states], group)
        return loss

    def _first_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        state.update(square_avg=torch.ones_like(parameter), momentum_buffer=torch.zeros_like(parameter))
        return state


def _parts(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """All at once on a GPU; on a CPU neighbours that fit into the cache together, which is faster."""
    part: list[Tensor] = []
    numbers = 0
    for parameter in parameters:
        if part and not parameter.is_cuda and numbers + parameter.numel() > _CACHED:
            yield part
            part, numbers = [], 0
        part.append(parameter)
        numbers += parameter.numel()
    if part:
        yield part


def _update(weights: Tensors, gradients: Tensors, squares: Tensors, velocities: Tensors, group: dict[str, Any]) -> None:
    alpha, rate = group["alpha"], group["lr"]
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    torch._foreach_mul_(squares, alpha)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - alpha)
    roots = torch._foreach_add(squares, group["eps"])
    torch._foreach_sqrt_(roots)
    torch._foreach_mul_(velocities, group["momentum"])
    if isinstance(rate, Tensor):  # as a factor it stays on the device; as a number it would be read back
        gradients, rate = torch._foreach_mul(gradients, rate), 1.0
    torch._foreach_addcdiv_(velocities, gradients, roots, rate)
    torch._foreach_sub_(weights, velocities)
