"""Update rules against closed forms and timm's; which parameters decay; state that goes on as if nothing happened."""

import io

import numpy as np
import pytest
import torch

from scalesearch.architecture import load_architecture
from scalesearch.networks.build import build_model
from scalesearch.scaling import load_proxy
from scalesearch.training.kernels import use_small_map_kernels
from scalesearch.training.optimizers import RMSpropTF, decay_groups, make_optimizer
from scalesearch.training.recipe import Recipe

OPTIMIZERS = ("sgd", "adamw", "rmsprop_tf", "rmsprop")


@pytest.fixture(scope="module")
def tiny():
    return load_proxy("tiny")(load_architecture("efficientnet_b0"), classes=10)


def tensors(seed=0, sizes=((7, 3, 3, 3), (5,), (300, 700), (4, 9), ())):
    generator = torch.Generator().manual_seed(seed)
    return [(0.3 * torch.randn(size, generator=generator)).requires_grad_() for size in sizes]


def give_gradients(parameters, step, scale=1.0):
    """Gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def rate_at(step):
    return 0.02 * (1 + step % 7) / 7 * 0.97**step


def run(parameters, optimizer, steps, first=0):
    for step in range(first, first + steps):
        give_gradients(parameters, step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()


# ------------------------------------------------------------------ RMSProp in TensorFlow's form


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_rmsprop_tf_against_its_definition(momentum):
    parameters = tensors()
    weights = [p.detach().double().numpy().copy() for p in parameters]
    squares, velocities = [np.ones_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    optimizer = RMSpropTF(parameters, alpha=0.8, eps=1e-3, momentum=momentum, weight_decay=0.01)
    for step in range(50):
        run(parameters, optimizer, 1, step)
        for i, parameter in enumerate(parameters):
            gradient = parameter.grad.double().numpy() + 0.01 * weights[i]
            squares[i] = 0.8 * squares[i] + 0.2 * gradient**2
            velocities[i] = momentum * velocities[i] + rate_at(step) * gradient / np.sqrt(squares[i] + 1e-3)
            weights[i] = weights[i] - velocities[i]
    for parameter, weight in zip(parameters, weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=0, atol=2e-6)


@pytest.mark.parametrize("foreach", [False, True])
def test_rmsprop_tf_is_timms(foreach):
    timm = pytest.importorskip("timm.optim")
    mine, theirs = tensors(), tensors()
    settings = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": 0.9, "weight_decay": 1e-2}
    options = {"foreach": foreach} if "foreach" in timm.RMSpropTF.__init__.__code__.co_varnames else {}
    run(mine, RMSpropTF(mine, **settings), 50)
    run(theirs, timm.RMSpropTF(theirs, **settings, **options), 50)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert (mine[0] - tensors()[0]).abs().max() > 0.1, "they went somewhere"


def test_a_new_learning_rate_leaves_the_velocity_as_it_is():
    """Where TensorFlow's form differs from torch's: what is under way goes on at the rate it was made with."""
    moved = {}
    for kind in (RMSpropTF, torch.optim.RMSprop):
        weight = torch.zeros(1, requires_grad=True)
        optimizer = kind([weight], lr=0.1, alpha=0.9, eps=1e-3, momentum=0.9)
        weight.grad = torch.ones(1)
        optimizer.step()
        before, weight.grad, optimizer.param_groups[0]["lr"] = weight.item(), torch.zeros(1), 0.0
        optimizer.step()
        moved[kind] = weight.item() - before
    assert moved[RMSpropTF] == pytest.approx(-0.9 * 0.1 / np.sqrt(1 + 1e-3)) and moved[torch.optim.RMSprop] == 0


def test_a_tensor_as_learning_rate_gives_the_same():
    plain, filled = tensors(), tensors()
    rate = torch.zeros(())
    optimizer = RMSpropTF(filled, lr=rate, weight_decay=0.01)
    run(plain, RMSpropTF(plain, weight_decay=0.01), 20)
    for step in range(20):
        give_gradients(filled, step)
        rate.fill_(rate_at(step))
        optimizer.step()
    for a, b in zip(plain, filled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_step_reads_nothing_back():
    """On the meta device there are no numbers: anything like .item() would raise, as it would spoil a CUDA graph."""
    parameters = [torch.nn.Parameter(torch.empty(4, 3, device="meta")), torch.nn.Parameter(torch.empty(3, device="meta"))]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = RMSpropTF(parameters, lr=torch.empty((), device="meta"), weight_decay=0.1)
    with pytest.raises(RuntimeError):
        optimizer.param_groups[0]["lr"].item()
    optimizer.step()
    assert set(optimizer.state[parameters[0]]) == {"square_avg", "momentum_buffer"}


def test_closure_and_parameters_without_gradient():
    weights = tensors(sizes=((3,), (2,)))
    optimizer = RMSpropTF(weights, lr=0.1)
    before = weights[1].clone()

    def closure():
        loss = weights[0].square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert torch.equal(weights[1], before) and weights[1] not in optimizer.state


# ------------------------------------------------------------------ any of them


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_saved_goes_on_bit_by_bit(name, tiny):
    recipe = Recipe(optimizer=name, weight_decay=1e-3, momentum=0.9)
    models = [build_model(tiny, seed=0) for _ in range(2)]
    straight, before = (make_optimizer(model, recipe) for model in models)
    run(list(models[0].parameters()), straight, 5)
    run(list(models[1].parameters()), before, 2)
    after = make_optimizer(models[1], recipe)
    after.load_state_dict(saved(before))
    run(list(models[1].parameters()), after, 3, first=2)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_sgd_is_nesterovs_on_real_gradients(tiny):
    """Also where weights and gradients lie channels-last, which the fused kernel walks through as memory."""
    model = use_small_map_kernels(build_model(tiny, seed=0).to(memory_format=torch.channels_last))
    recipe = Recipe(learning_rate=0.3, rate_batch=0, momentum=0.8, weight_decay=0.1, decay_biases=True)
    optimizer = make_optimizer(model, recipe)
    decayed = {id(p) for p in decay_groups(model, True)[0]}
    weights = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    velocities = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    images = torch.randn(4, 3, tiny.resolution, tiny.resolution, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        model(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad.double() + (0.1 * weights[name] if id(parameter) in decayed else 0)
            velocities[name] = 0.8 * velocities[name] + gradient
            weights[name] = weights[name] - 0.3 * (gradient + 0.8 * velocities[name])
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


def test_adamw_is_decoupled_and_has_the_recipes_beta():
    layer = torch.nn.Linear(3, 2, bias=False)
    optimizer = make_optimizer(layer, Recipe(optimizer="adamw", learning_rate=0.1, rate_batch=0, momentum=0.5, weight_decay=0.2))
    weight = layer.weight.detach().double().numpy().copy()
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(1, 6):
        give_gradients([layer.weight], step)
        gradient = layer.weight.grad.double().numpy()
        optimizer.step()
        first, second = 0.5 * first + 0.5 * gradient, 0.999 * second + 0.001 * gradient**2
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * first / (1 - 0.5**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_starts_at_the_peak_rate_with_the_recipes_decay(name, tiny):
    recipe = Recipe(optimizer=name, learning_rate=0.016, batch=512, rate_batch=256, weight_decay=0.25)
    groups = make_optimizer(build_model(tiny), recipe).param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]
    assert [group["lr"] for group in groups] == pytest.approx([0.032, 0.032])


# ------------------------------------------------------------------ who decays


def names(model, biases):
    by_id = {id(p): name for name, p in model.named_parameters()}
    groups = [[by_id[id(p)] for p in group] for group in decay_groups(model, biases)]
    assert sorted(groups[0] + groups[1]) == sorted(by_id.values())
    return groups


def test_weights_of_convolutions_and_the_classifier_decay(tiny):
    decayed, others = names(build_model(tiny), biases=False)
    shapes = dict(build_model(tiny).named_parameters())
    assert all(shapes[name].ndim > 1 for name in decayed) and all(shapes[name].ndim == 1 for name in others)


def test_biases_decay_too_where_asked_but_never_batch_norm(tiny):
    """tensorflow/tpu: every trainable variable whose name does not hold batch_normalization."""
    model = build_model(tiny)
    decayed, others = names(model, biases=True)
    norms = {f"{name}.{part}" for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d) for part in ("weight", "bias")}
    assert set(others) == norms and norms
    biases = [name for name in decayed if name.endswith("bias")]
    assert len(biases) == 1 + 2 * sum(stage.layers for stage in tiny.stages if stage.se_ratio), "the classifier's, two of each SE"


def test_a_shared_weight_is_one_parameter():
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    decayed, others = decay_groups(torch.nn.Sequential(first, torch.nn.GroupNorm(1, 3), second), True)
    assert len(decayed) == 3 and len(others) == 2


# ------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_recorded_step_follows_its_learning_rate(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recorded = [torch.nn.Linear(9, 5).cuda() for _ in range(2)]
    recorded[1].load_state_dict(recorded[0].state_dict())
    recipe = Recipe(optimizer=name, weight_decay=0.01)
    eager, graphed = (make_optimizer(model, recipe) for model in recorded)
    rate = torch.full((), 0.1, device="cuda")
    for group in graphed.param_groups:
        group["lr"] = rate
    for model in recorded:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    graphed.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed.step()
    for step in range(5):
        for group in eager.param_groups:
            group["lr"] = 0.1 if step == 0 else 0.1 / step
        eager.step()
        if step:
            rate.fill_(0.1 / step)
            graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(recorded[0].parameters(), recorded[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
