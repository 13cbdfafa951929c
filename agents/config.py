"""The settings of a search: the sentence under each field is its command-line help and documentation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.exploration import Exploration
from amc.errors import UserError


def _require(settings: object, **holds: bool) -> None:
    """Refuse settings by name, before anything has been started."""
    for name, good in holds.items():
        if not good:
            raise UserError(f"The setting {name} cannot be {getattr(settings, name)}.")


@dataclass(frozen=True)
class AgentConfig:
    """How policies are proposed, and how the agent learns from their rewards."""

    algorithm: str = "ddpg"
    """Who proposes: ddpg, td3, sac, evolution, bayes, cbo (bayes and cbo: extra bayes), random,
    greedy (a descent by measured sensitivities), or the fixed uniform, balanced, shallow (prunes shallow
    layers more) and deep."""
    seed: int = 0
    """Seeds the weights, the exploration and the replay sampling; the same seed gives the same search."""
    start_from: Path | None = None
    """Folder of a trained agent (a run, or of train_transfer.py) whose actor and critic this search goes on
    from; it asks that actor second, and has no warm-up. --sigma-start 0.1 stays near it."""
    warmup_evaluations: int = 10
    """Evaluations drawn around the reference policy before the actor proposes; at most half of the budget."""
    candidates: int = 256
    """Noisy candidates that a Gaussian process ranks for each evaluation after the warm-up (ddpg, td3, sac);
    1 takes the first one unseen, as the paper does."""
    sigma_start: float = 0.3
    """Exploration noise (standard deviation on the action scale -1 to 1) in the warm-up and just after it."""
    sigma_end: float = 0.05
    """Exploration noise 10 evaluations before the budget ends; it falls geometrically in between."""
    schedule_evaluations: int | None = None
    """Evaluations over which the noise falls; by default those of the search, as first started."""
    actor_learning_rate: float = 1e-3
    """Adam's learning rate for the actor."""
    critic_learning_rate: float = 1e-3
    """Adam's learning rate for the critic (and for the temperature of sac)."""
    batch_size: int = 64
    """Transitions a gradient update."""
    tau: float = 0.01
    """How far the target networks move towards the trained ones at each update."""
    gamma: float = 1.0
    """Discount factor; 1, because a walk is short and its last decisions matter no more than its first."""
    hidden_sizes: tuple[int, ...] = (300, 300)
    """Widths of the hidden layers, the same for actor and critic."""
    updates_per_transition: int = 4
    """Gradient updates per decision of an episode; 1 where an evaluation takes much less than a second."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: one of them makes no sense.
        """
        _require(
            self,
            seed=self.seed >= 0,
            warmup_evaluations=self.warmup_evaluations >= 0,
            candidates=self.candidates >= 1,
            sigma_start=0.0 < self.sigma_start <= 10.0,
            sigma_end=0.0 < self.sigma_end <= self.sigma_start,
            schedule_evaluations=self.schedule_evaluations is None or self.schedule_evaluations >= 1,
            actor_learning_rate=self.actor_learning_rate > 0.0,
            critic_learning_rate=self.critic_learning_rate > 0.0,
            batch_size=self.batch_size >= 1,
            tau=0.0 < self.tau <= 1.0,
            gamma=0.0 <= self.gamma <= 1.0,
            hidden_sizes=all(size >= 1 for size in self.hidden_sizes),
            updates_per_transition=self.updates_per_transition >= 1,
        )

    def exploration(self, budget_evaluations: int, references: int = 1) -> Exploration:
        """The exploration schedule of a search that may spend `budget_evaluations`.

        Args:
            budget_evaluations: evaluations of the whole search.
            references: how many of them, at the start, are reference policies.
        """
        evaluations = self.schedule_evaluations or budget_evaluations
        warmup = min(self.warmup_evaluations, (evaluations - references + 1) // 2)
        return Exploration(
            evaluations=evaluations,
            warmup=references + 1 if self.start_from else warmup,
            sigma_start=self.sigma_start,
            sigma_end=self.sigma_end,
            references=references,
        )


@dataclass(frozen=True)
class SearchConfig:
    """How long the search goes on, and how often it is saved."""

    evaluations: int = 200
    """Policies evaluated in all; a policy met again counts too, although it is not measured again."""
    time_budget: float | None = None
    """Seconds after which this call must have ended, even if evaluations are left; none: no limit."""
    checkpoint_every: int = 10
    """Evaluations between two checkpoints; fewer only shortens a resume, nothing is lost in between."""
    proposals_per_round: int = 1
    """Policies proposed at once and evaluated together; at least one a worker."""
    workers: int = 1
    """Processes that evaluate, one thread each; N of them have N policies proposed before any is judged."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: one of them makes no sense.
        """
        _require(
            self,
            evaluations=self.evaluations >= 1,
            time_budget=self.time_budget is None or self.time_budget > 0.0,
            checkpoint_every=self.checkpoint_every >= 1,
            proposals_per_round=self.proposals_per_round >= 1,
            workers=self.workers >= 1,
        )

    @property
    def at_once(self) -> int:
        """Policies proposed before the rewards of any of them are known."""
        return max(self.proposals_per_round, self.workers)


@dataclass(frozen=True)
class CoolingConfig:
    """Whether the budgets tighten round by round, and what happens between two rounds."""

    cooling: Literal["none", "linear", "exponential"] = "none"
    """How the budgets tighten: linear or exponential, in --rounds, each of which prunes what the one before
    it has left; none searches once under the final ones."""
    rounds: int = 5
    """Rounds of a cooled search; its evaluations are divided among them."""
    round_epochs: int = 1
    """Epochs of fine-tuning between two rounds, taught by the original; the last round has none after it."""
    round_lr: float = 0.01
    """Peak learning rate between two rounds."""
    round_batch_size: int = 64
    """Images a step between two rounds."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: one of them makes no sense.
        """
        _require(
            self,
            cooling=self.cooling in ("none", "linear", "exponential"),
            rounds=self.rounds >= 1,
            round_epochs=self.round_epochs >= 0,
            round_lr=self.round_lr > 0.0,
            round_batch_size=self.round_batch_size >= 2,
        )

    @property
    def is_on(self) -> bool:
        """Whether there are rounds at all."""
        return self.cooling != "none"
