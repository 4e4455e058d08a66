"""Targets: what a delivery is sent to, one package for each kind."""
