"""Actor and critic that agree about dead knobs."""

from typing import Any

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor


class MaskedActor(Actor):
    """An actor whose action is 0 in every entry that is dead at the observed point.

    The replay buffer holds 0 there. Without the mask the critic would be asked about actions that it has
    never seen, in the actor's update and in its own targets.
    """

    def __init__(self, *args: Any, alive: slice, **settings: Any):
        super().__init__(*args, **settings)
        self.alive = alive

    def forward(self, obs: Tensor) -> Tensor:
        """Actions [N, K] in [-1, 1] for observations [N, observation_size]."""
        action: Tensor = super().forward(obs)
        return action * obs[:, self.alive]


class MaskedPolicy(TD3Policy):
    """The networks of DDPG and TD3, with a `MaskedActor`.

    Args:
        alive: entries of the observation that are 1 where an entry of the action means something.
    """

    def __init__(self, *args: Any, alive: slice, **settings: Any):
        self.alive = alive
        super().__init__(*args, **settings)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> MaskedActor:
        """Build the actor or its target."""
        settings = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return MaskedActor(**settings, alive=self.alive).to(self.device)
