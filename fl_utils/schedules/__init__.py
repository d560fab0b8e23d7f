"""Two ways to federate without synchronous rounds at a server.

    asynchronous   the server takes each update as it comes and weighs it by its staleness (Xie et al. 2019)
    gossip         no server: every client averages with its neighbours in a graph (Lian et al. 2017)

Both train as :func:`fl_utils.federation.run` does, with the same clients, seeds and executors, and count the bytes of
the same frames. A result depends on the seed and the data alone. Neither keeps checkpoints: a killed run begins anew.
"""

from fl_utils.schedules.asynchrony import AsynchronousResult, Update, asynchronous, client_seconds, staleness_weight
from fl_utils.schedules.decentral import GossipResult, GossipRound, gossip, mixing, neighbourhoods

__all__ = [
    "AsynchronousResult",
    "GossipResult",
    "GossipRound",
    "Update",
    "asynchronous",
    "client_seconds",
    "gossip",
    "mixing",
    "neighbourhoods",
    "staleness_weight",
]
