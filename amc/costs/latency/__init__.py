"""Latency of policies that have not been measured: features, a monotone predictor, and its samples."""
