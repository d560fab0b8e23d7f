"""Averages of secrets: authenticated SPDZ between processes, plain additive sharing and CrypTen beside it.

``average`` is the front door; ``spdz`` holds the protocol, step by step. Everything that a party's process imports is
light (numpy and cryptography): no torch.
"""
