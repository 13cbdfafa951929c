"""Supervised training on data in memory: one plain loop, its schedule and the accuracy that judges it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data.images import ImageData
from amc.errors import UserError
from amc.precision import computes_in_bfloat16

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode without gradients, and every part of it back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 100) -> float:
    """The share of images whose largest logit is the label's, in [0, 1].

    Args:
        model: Maps [B, C, H, W] to logits [B, classes]; evaluated where it lies.
        images: Normalised float32 [N, C, H, W].
        labels: int64 [N].
        batch_size: Images a forward pass; beyond 100 or so a CPU gets slower, as activations leave its cache.
    """
    device = device_of(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with evaluating(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            correct += (model(x.to(device)).argmax(1) == y.to(device)).sum()
    return int(correct) / len(labels)


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """The usual loss of a classifier, with the label smoothed over all classes by a share of it."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).float(), y, label_smoothing=label_smoothing)

    return loss


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.15) -> float:
    """Linear warm-up to the peak, then half a cosine down to 0 (Loshchilov and Hutter 2017, equation 5).

    Args:
        step: From 0 to steps - 1.
        steps: Of the whole training.
        peak: Largest value, reached when the warm-up ends.
        warmup: Share of the steps that warm up.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Images a step.
        lr: Peak learning rate.
        momentum: Of SGD with Nesterov's correction.
        weight_decay: Added to every gradient, times the weight.
        warmup: Share of the steps in which the learning rate rises.
        label_smoothing: Share of each label that is spread over all classes, where `fit` is given no loss.
        augment: Whether the data's augmentation is applied.
        views: Augmented versions of the training split that the epochs take in turn; 0 makes a new one for
            every epoch. A teacher needs to see each version only once.
        seed: Order of images, augmentation, dropout.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.15
    label_smoothing: float = 0.0
    augment: bool = True
    views: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if min(self.epochs, self.views) < 0 or self.batch_size < 2:
            raise UserError("Training needs 0 or more epochs and views, and at least 2 images a batch.")
        if not (math.isfinite(self.lr) and self.lr > 0 and self.weight_decay >= 0):
            raise UserError(
                "Training needs a positive learning rate and a weight decay that is not negative."
            )
        if not all(0 <= share < 1 for share in (self.momentum, self.warmup, self.label_smoothing)):
            raise UserError("Momentum, the share of warm-up and label smoothing must lie in [0, 1).")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"A seed must lie in 0..2^32 - 1, and {self.seed} does not.")


@dataclass(frozen=True)
class Epoch:
    """What one finished epoch left behind.

    Attributes:
        number: Epochs done so far, from 1.
        loss: Mean training loss over the epoch.
        seconds: Its duration.
        momentum: SGD's buffers by parameter name; with the model's weights and `number`, all that is
            needed to go on later as if nothing had happened.
    """

    number: int
    loss: float
    seconds: float
    momentum: Mapping[str, Tensor]


def fit(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    loss: Loss | None = None,
    start_epoch: int = 0,
    momentum: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a model in place on the train split, on the device where it lies.

    Each epoch draws from a generator of its own, seeded by (seed, epoch), so an interrupted training that
    goes on from its last epoch meets the same batches. The global random state is left as it was.

    Args:
        model: Ends in evaluation mode, also when interrupted.
        data: Its train split is used and nothing else.
        recipe: Epochs, learning rate and so on.
        loss: `loss(model, x, y)` -> scalar; cross-entropy with the recipe's smoothing by default.
        start_epoch: Epochs that are done already.
        momentum: SGD's buffers at that point (`Epoch.momentum`).
        on_step: Called with (steps done, steps in total) after each step.
        on_epoch: Called after each epoch.

    Returns:
        The epochs done in this call.

    Raises:
        UserError: The loss became NaN or infinite.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(
        trainable.values(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    for name, buffer in (momentum or {}).items():
        optimizer.state[trainable[name]]["momentum_buffer"] = buffer.to(trainable[name].device).clone()
    objective = loss or cross_entropy(recipe.label_smoothing)
    done = []
    try:
        for index in range(start_epoch, recipe.epochs):
            began = time.perf_counter()
            mean_loss = _epoch(model, data, recipe, index, optimizer, objective, on_step)
            buffers = {name: optimizer.state[p].get("momentum_buffer") for name, p in trainable.items()}
            kept = {name: buffer for name, buffer in buffers.items() if buffer is not None}
            done.append(Epoch(index + 1, mean_loss, time.perf_counter() - began, kept))
            if on_epoch is not None:
                on_epoch(done[-1])
    finally:
        model.eval()
    return done


def _epoch(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    index: int,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    on_step: Callable[[int, int], None] | None,
) -> float:
    device = device_of(model)
    per_epoch = max(1, len(data.train) // recipe.batch_size)
    total = torch.zeros((), device=device)
    seed = recipe.seed * 100_003 + (index % recipe.views if recipe.views else index)
    generator = torch.Generator().manual_seed(seed)
    batches = data.batches(
        "train", recipe.batch_size, generator, recipe.augment, drop_last=True, device=device
    )
    layout = _layout(device)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout draws from the global generator
        for step, (x, y) in enumerate(batches, start=index * per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe.epochs * per_epoch, recipe.lr, recipe.warmup)
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, x.contiguous(memory_format=layout), y)
            value.backward()
            optimizer.step()
            total += value.detach()
            if on_step is not None:
                on_step(step + 1, recipe.epochs * per_epoch)
    if not math.isfinite(float(total)):
        raise UserError(
            f"The training loss became {float(total)} in epoch {index + 1}: lower the learning rate."
        )
    return float(total) / per_epoch


def _layout(device: torch.device) -> torch.memory_format:
    """How batches lie in memory: by whole pixels where convolutions are faster for it.

    With AVX2, the gradient of a strided 1x1 convolution of fewer than 8 channels corrupts memory where
    channels come last (uxlfoundation/oneDNN, issue 6035), and pruning makes such convolutions. CPUs that
    compute in bfloat16 take other kernels, for float32 too.
    """
    by_pixels = device.type == "cuda" or computes_in_bfloat16("auto", device)
    return torch.channels_last if by_pixels else torch.contiguous_format
