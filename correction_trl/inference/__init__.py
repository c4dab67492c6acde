"""Correction at inference time: strategies that ask a model, local or behind a server, more than once."""
