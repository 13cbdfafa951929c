"""Reference networks, and the registry through which a user's own plugs in."""

from amc.models.registry import build_model, check_fits, list_models, register_model
from amc.models.weights import load_weights, save_weights

__all__ = ["build_model", "check_fits", "list_models", "load_weights", "register_model", "save_weights"]
