"""How rewards become what the critic learns, and back."""

import math

FULL_CREDIT_LENGTH = 15
"""Up to this many decisions each row gets the whole reward; above it, rewards shrink by 15 / T so that the
return that the critic regresses stays of the order of 15 rewards for any network depth."""


def softened(reward: float) -> float:
    """What is learned instead of a reward: below -1 only the logarithm counts, with the same slope at -1.

    A policy that loses 40 points beyond an allowed drop is paid -40, and one squared error of that size
    outweighs everything that a critic knows about the policies worth having. The order stays what it was.
    """
    return reward if reward >= -1.0 else -1.0 - math.log(-reward)


def credit(reward: float, length: int) -> float:
    """What every decision of an episode with so many of them is paid."""
    return softened(reward) * min(1.0, FULL_CREDIT_LENGTH / length)


def reward_of(value: float, length: int) -> float:
    """The reward behind the critic's value of the last decision of an episode; undoes `credit`."""
    soft = value / min(1.0, FULL_CREDIT_LENGTH / length)
    return soft if soft >= -1.0 else -math.exp(min(-1.0 - soft, 50.0))
