"""Vertical federated learning: two parties that hold different columns of one table.

``psi`` aligns their rows. ``encryption`` multiplies under a key that one of them has, by ``ckks`` (packed) or
``paillier``. ``hetero_nn`` is the protocol in which they train one network, ``joint`` the same training in one place;
``session`` runs the parties as processes (``party``, over ``channel``), and ``recommendation`` brings MovieLens to it.
``cost`` times a step.
"""
