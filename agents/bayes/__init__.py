"""Bayesian optimisation on BoTorch, without and with constraints; the extra `bayes`."""
