"""The Gymnasium environment in which an agent walks a network layer by layer."""
