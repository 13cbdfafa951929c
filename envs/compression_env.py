"""`CompressionEnv`: the decision process as a Gymnasium environment."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from envs.judge import Judge, ProblemLike
from envs.observation import Layout
from envs.walk import Walk


class CompressionEnv(gym.Env[np.ndarray, np.ndarray]):
    """Walks a network's decision points and decides what replaces a layer, width and bits.

    One episode is one policy (He et al., AMC, ECCV 2018). Transitions are known in closed form; the one
    expensive number, the evaluation of the finished policy, is the reward of the last step.

    ## Observation
    `Box(0, 1, (N,), float32)`. T is the number of decision points (of the longest episode, where several
    networks are given), K the number of knobs that are alive somewhere, B the number of budgets. Each
    static feature is divided by its largest value in the network.

    | entries | name | meaning |
    |---|---|---|
    | 1 | index | position of the layer in the network |
    | 1 | type | 0 convolution, 0.5 depthwise convolution, 1 linear |
    | 1 | n | output channels |
    | 1 | c | input channels |
    | 2 | h, w | height and width of the input |
    | 1 | stride | stride |
    | 1 | k | kernel size |
    | 1 | macs | multiply-accumulates of the layer in the original network |
    | 1 | reduced | share of the first budget's cost (MACs without one) that decisions so far have removed |
    | 1 | rest | share of that cost that open decisions can still change |
    | K | previous | executed action of the previous step, mapped from [-1, 1] to [0, 1] |
    | K | alive | 1 where the knob is decided at this point, 0 where it is inherited or has one legal value |
    | B | budget | each budget as a fraction of the original's cost, 1 without one |
    | T | one-hot | the current decision point |
    | T x K | decided | keep ratio, or rank of operator, amount or bits, of every decision, 0 where open |

    With `--observation summary` N does not depend on the network, so that one actor fits all that have the
    same knobs. In the place of one-hot and decided there are:

    | entries | name | meaning |
    |---|---|---|
    | 1 | position | share of the decisions that has been made |
    | 1 | depth | log2(1 + T) / log2(257) |
    | 1 | tied | share of the layers whose width is decided at this point |
    | 1 | inputs | share of the layer's inputs that are left, what is open being as in the reference policy |
    | K | reference | what the action 0 stands for here: keep ratio, or rank |
    | 3 x K | recent | the last three decisions, the latest first |
    | K | mean | mean of the decisions so far, weighted by the MACs of their layers |
    | K | least | the smallest decision so far |
    | 4 x K | by depth | the same means in each quarter of the network |

    The terminal observation keeps progress, previous action, budget and decisions; the rest is 0.

    ## Action
    `Box(-1, 1, (K,), float32)`, one entry a knob (operator, its amount, bits of a code, width, weight bits,
    activation bits, as far as they are a choice). 0 is the reference policy's value; -1 the
    smallest value from which the rest can still use a budget up; +1 the largest from which the rest can still
    keep every budget; linear in between, rounded to the nearest feasible value. Entries of dead knobs are
    ignored.

    ## Reward
    0 at every step but the last, where the finished policy is evaluated.

    ## Termination
    `terminated` after T steps; never truncated.

    ## Info
    `executed_action` [K] at every step; at the last one also `policy` (a `CompressionPolicy`) and
    `evaluation` (an `Evaluation`).

    ## Reset options
    `{"network": name}` chooses among several problems, `{"budget": "macs=0.3"}` or a list of budgets replaces
    the problem's own. Both hold for one episode: without them it plays the first network under its own
    budgets, whatever was played before.

    Args:
        problem: an `envs.problem.Problem`, or several by name (they need the same knobs).
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, problem: ProblemLike | Mapping[str, ProblemLike]):
        problems = dict(problem) if isinstance(problem, Mapping) else {"network": problem}
        self._problems: dict[str, ProblemLike] = problems
        walks = {name: p.walk() for name, p in problems.items()}
        knobs = {walk.knob_names for walk in walks.values()}
        if len(knobs) != 1:
            raise UserError("The networks of one environment need the same knobs, and there must be one.")
        self._knobs = knobs.pop()
        self._layout = Layout(
            max(walk.layout.steps for walk in walks.values()),
            len(self._knobs),
            max(walk.layout.budgets for walk in walks.values()),
            next(iter(walks.values())).layout.kind,
        )
        self._judges: dict[tuple[str, tuple[str, ...] | None], Judge] = {}
        self._name = next(iter(problems))
        self._budget: tuple[str, ...] | None = None
        self._walk = self._new_walk(self._name, self._budget)
        self.observation_space = spaces.Box(0.0, 1.0, (self._layout.size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self._layout.knobs,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; see the class for `options`.

        Raises:
            UserError: an option names an unknown network or a budget that cannot be kept.
        """
        super().reset(seed=seed)
        self._choose(options or {})
        return self._walk.reset(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the current point; the last step evaluates the policy."""
        observation, executed, done = self._walk.step(np.asarray(action, dtype=np.float32))
        info: dict[str, Any] = {"executed_action": executed}
        reward = 0.0
        if done:
            policy = self._walk.policy()
            evaluation, reward = self._judge(policy)
            info |= {"policy": policy, "evaluation": evaluation}
        return observation, reward, done, False, info

    def _judge(self, policy: CompressionPolicy) -> tuple[Evaluation, float]:
        """Evaluation and reward; each network and budget has a reference policy of its own."""
        key = (self._name, self._budget)
        if key not in self._judges:
            self._judges[key] = Judge(self._problems[self._name], self._budget)
        return self._judges[key](policy)

    def _choose(self, options: dict[str, Any]) -> None:
        name = options.get("network", next(iter(self._problems)))
        if name not in self._problems:
            raise UserError(f"There is no network {name!r} here; there are {', '.join(self._problems)}.")
        budget = options.get("budget")
        budget = (budget,) if isinstance(budget, str) else None if budget is None else tuple(budget)
        if (name, budget) != (self._name, self._budget):
            self._walk = self._new_walk(name, budget)
            self._name, self._budget = name, budget

    def _new_walk(self, name: str, budget: tuple[str, ...] | None) -> Walk:
        walk = self._problems[name].walk(budget)
        room, needed = self._layout, (len(walk.budgets), walk.length)
        if walk.knob_names != self._knobs or needed[0] > room.budgets or needed[1] > room.steps:
            raise UserError(
                f"{' '.join(budget or ())} needs {needed[0]} budgets and {needed[1]} decisions about "
                f"{', '.join(walk.knob_names)}, and this environment has room for {room.budgets} and "
                f"{room.steps} about {', '.join(self._knobs)}: make it of a problem that has these budgets."
            )
        walk.layout = self._layout
        return walk
