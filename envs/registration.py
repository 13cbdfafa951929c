"""Registration with Gymnasium: `gymnasium.make("amc/Compression-v0", problem=...)`."""

import gymnasium as gym

ENVIRONMENT_ID = "amc/Compression-v0"


def register_environments() -> None:
    """Register the environment, once; Gymnasium 1 does not ask installed packages for theirs."""
    if ENVIRONMENT_ID not in gym.registry:
        gym.register(id=ENVIRONMENT_ID, entry_point="envs.compression_env:CompressionEnv")
