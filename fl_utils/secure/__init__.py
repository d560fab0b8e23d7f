"""Averages of secrets: authenticated SPDZ between processes, plain additive sharing and CrypTen beside it.

``average`` is the front door; ``spdz`` holds the protocol, step by step. Everything that such a party's process imports
is light (numpy and cryptography): no torch. ``datasites`` is PySyft's way: the scientist's code goes to the data's
owners, who approve it; what comes back is averaged through ``average``.
"""
