"""A job as independent shares: a list of tasks and a pure function of one, done here or by the workers of a cluster.

A task is a small value that pickles and names the `files` that it is made from; the function reads those and writes
nothing. Results come in the order of the tasks and are put together, and written, by the caller. So the bytes are the
same wherever the shares are done, and a share that is lost with its worker is done again.
"""

from rs_biformer.shares.cluster import connected, executor
from rs_biformer.shares.here import Executor, Here, Share, in_order

__all__ = ["Executor", "Here", "Share", "connected", "executor", "in_order"]
