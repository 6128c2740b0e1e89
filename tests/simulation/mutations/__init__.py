"""Bugs planted on purpose, each by replacing a piece of production. The simulation must find every one of them."""

from tests.simulation.mutations import leases, log, payments, replicas, wishes, work
from tests.simulation.mutations.planting import MUTATIONS

__all__ = ["MUTATIONS", "leases", "log", "payments", "replicas", "wishes", "work"]
