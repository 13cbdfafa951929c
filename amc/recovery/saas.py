"""SaaS: the labels that let a network learn fastest are taken for the right ones.

Cicek, Fawzi and Soatto, "SaaS: Speed as a Supervisor for Semi-supervised Learning", ECCV 2018
(arXiv:1805.00980). Wrong labels slow training down, so the posterior P [U, classes] of the unknown labels
follows the gradient of the loss accumulated along a training, never of its end:

    loss_t = CE(labeled) - 1/B sum_n sum_c P_nc log p_t(c | x_n) + mean_n H(p_t(. | x_n))
    P_n <- project(P_n + eta / B sum_t log p_t(. | x_n))

over the inner epochs t of SGD with Langevin noise, each time from the same random weights. The projection
keeps every entry above a floor, and the entropy H keeps the uniform posterior, which is learned soonest, from
being the answer.

As in the authors' code: labelled and unlabeled images pass the network apart, the unlabeled ones are shuffled
once an outer epoch, and eta T B^-1 = 0.4 for T inner epochs. Ours: the noise is added after the gradient and
not between the forward and the backward pass, which belongs to neither of two weights; the last batch is not
smaller than the others by more than one image.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data.few_labels import FewLabels
from amc.errors import UserError
from amc.precision import Precision, bfloat16, computes_in_bfloat16
from amc.recovery.label_estimate import LabelEstimate
from amc.recovery.saas_posterior import project, random_posterior
from amc.training import device_of

MOMENTUM, LANGEVIN = 0.9, 1e-5
ENTROPY_WEIGHT = 1.0
FLOOR_SHARE = 0.5
"""The floor of the posterior as a share of 1 / classes: 0.05 for ten classes."""
LABEL_STEP = 0.4
"""eta T / B: step size times inner epochs over batch size, 1 * 40 / 100 in the paper."""


@dataclass(frozen=True)
class Saas:
    """How labels are inferred.

    Attributes:
        inner: epochs over the unlabeled images between two updates of their labels.
        outer: updates.
        batch_size: unlabeled images a step.
        labeled_batch: labelled images a step, drawn anew for every step.
        learning_rate: of SGD. A short inner loop needs a higher one: after 900 steps at the authors' rate a
            network has learned little that could tell right labels from wrong ones.
    """

    inner: int = 10
    outer: int = 15
    batch_size: int = 100
    labeled_batch: int = 100
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if min(self.inner, self.outer) < 1 or min(self.batch_size, self.labeled_batch) < 2:
            raise UserError("SaaS needs at least 1 inner and 1 outer epoch, and 2 images a batch.")

    def images(self, unlabeled: int) -> int:
        """Images that pass the network in one outer epoch."""
        steps = self.inner * batches_of(unlabeled, self.batch_size)
        return self.inner * unlabeled + steps * self.labeled_batch


PAPER = Saas(inner=40, outer=135, learning_rate=0.01)
"""The authors' settings for CIFAR-10."""


def batches_of(count: int, batch_size: int) -> int:
    """Batches of at most `batch_size` that go through `count` images."""
    return math.ceil(count / batch_size)


def speed_loss(
    labeled: Tensor, labels: Tensor, unlabeled: Tensor, posterior: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of one step of the inner loop.

    Args:
        labeled: logits [L, classes].
        labels: int64 [L].
        unlabeled: logits [B, classes].
        posterior: [B, classes].

    Returns:
        The scalar, and log p(c | x) of the unlabeled images [B, classes].
    """
    log_p = F.log_softmax(unlabeled, dim=1)
    expected = -(posterior * log_p).sum(1).mean()
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    return F.cross_entropy(labeled, labels) + expected + ENTROPY_WEIGHT * entropy, log_p


def updated(posterior: Tensor, evidence: Tensor, inner: int) -> Tensor:
    """The posterior after one outer step, float64 [U, classes].

    Args:
        posterior: before it.
        evidence: sum of log p_t(. | x_n) over the inner epochs t, [U, classes]: -B times the gradient of the
            accumulated loss with respect to the posterior.
        inner: inner epochs.
    """
    moved = posterior + LABEL_STEP / inner * evidence
    return project(moved, FLOOR_SHARE / posterior.shape[1])


def infer_labels(
    model: nn.Module,
    few: FewLabels,
    settings: Saas,
    *,
    seed: int = 0,
    precision: Precision = "float32",
    start: LabelEstimate | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_round: Callable[[LabelEstimate], None] | None = None,
) -> LabelEstimate:
    """Infer the labels of unlabeled images.

    Each outer epoch draws from a generator of its own, so an interrupted inference goes on exactly.

    Args:
        model: with random weights, on any device; has them again at the end, also when interrupted.
        few: labelled and unlabeled images.
        settings: epochs and batch sizes.
        seed: of the first posterior, the order of images, augmentation, noise and dropout.
        precision: arithmetic of the network's passes.
        start: where an interrupted inference was; None begins.
        on_step: called with (steps done, steps in total) after each step.
        on_round: called after each outer epoch.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    fresh = copy.deepcopy(model.state_dict())
    estimate = start or LabelEstimate(_first_posterior(few, seed))
    try:
        for outer in range(estimate.rounds, settings.outer):
            model.load_state_dict(fresh)
            inner = InnerLoop(model, few, settings, seed * 100_003 + outer + 1, precision)
            loss = inner.run(estimate.posterior, outer, on_step)
            posterior = updated(estimate.posterior, inner.evidence, settings.inner)
            estimate = estimate.followed_by(posterior, loss)
            if on_round is not None:
                on_round(estimate)
    finally:
        model.load_state_dict(fresh)
        model.eval()
    return estimate


def _first_posterior(few: FewLabels, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 100_003)
    return random_posterior(len(few.unlabeled), few.classes, generator)


class InnerLoop:
    """One training from random weights, along which the evidence for every label is gathered.

    Args:
        model: with its random weights; is trained in place.
        few: labelled and unlabeled images.
        settings: epochs and batch sizes.
        seed: of everything random.
        precision: arithmetic of the passes.

    Attributes:
        evidence: sum of log p_t(. | x_n) over the epochs, float64 [U, classes].
    """

    def __init__(
        self,
        model: nn.Module,
        few: FewLabels,
        settings: Saas,
        seed: int,
        precision: Precision = "float32",
    ):
        self.model, self.few, self.settings = model, few, settings
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device_of(model)
        self.rounds = computes_in_bfloat16(precision, self.device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=MOMENTUM)
        self.evidence = torch.zeros(len(few.unlabeled), few.classes, dtype=torch.float64)

    def run(self, posterior: Tensor, outer: int, on_step: Callable[[int, int], None] | None) -> float:
        """Train; returns the mean loss."""
        self.model.train()
        per_epoch = batches_of(len(self.few.unlabeled), self.settings.batch_size)
        steps, total = self.settings.inner * per_epoch, 0.0
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)  # dropout draws from the global generator
            for step, index in enumerate(self._batches(per_epoch), start=1):
                total += self.step(index, posterior)
                if on_step is not None:
                    on_step(outer * steps + step, self.settings.outer * steps)
        if not math.isfinite(total):
            raise UserError(f"The loss became {total} while labels were inferred.")
        return total / steps

    def _batches(self, per_epoch: int) -> Iterator[Tensor]:
        """Positions of unlabeled images; every inner epoch meets the same batches."""
        order = torch.randperm(len(self.few.unlabeled), generator=self.generator)
        for _ in range(self.settings.inner):
            yield from order.tensor_split(per_epoch)

    def step(self, index: Tensor, posterior: Tensor) -> float:
        """One step of SGD with noise on the unlabeled images at `index`, int64 [B]; the loss before it."""
        labeled, labels = self._labeled()
        unlabeled = self._seen(self.few.unlabeled[index])
        with bfloat16(self.rounds, self.device):
            said, answers = self.model(labeled).float(), self.model(unlabeled).float()
        believed = posterior[index].to(self.device, torch.float32)
        loss, log_p = speed_loss(said, labels, answers, believed)
        self.evidence[index] += log_p.detach().cpu().double()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._add_noise()
        return float(loss.detach())

    def _labeled(self) -> tuple[Tensor, Tensor]:
        known = self.few.labeled
        chosen = torch.randperm(len(known), generator=self.generator)[: self.settings.labeled_batch]
        return self._seen(known.images[chosen]), known.labels[chosen].to(self.device)

    def _seen(self, images: Tensor) -> Tensor:
        return self.few.augmented(images, self.generator).to(self.device)

    @torch.no_grad()
    def _add_noise(self) -> None:
        size = math.sqrt(self.settings.learning_rate * LANGEVIN)
        for parameter in self.model.parameters():
            noise = torch.randn(parameter.shape, generator=self.generator)
            parameter.add_(noise.to(self.device), alpha=size)
