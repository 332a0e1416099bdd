"""Who ends what when NCCL fails: we do, never its watchdog.

Read in torch 2.13: ProcessGroupNCCL.Options has no field for it; each group's constructor reads
environment variables, so they are set in this process before its first group. By default the
watchdog ends the process when an operation is late or a peer is gone (mode 3). In mode 2 it aborts
the communicator behind our back, and an event behind an aborted operation is over without its
bytes. In mode 0 it logs and does nothing. The monitor, which ends the process when the watchdog
hangs, is off; send and recv of an eagerly connected communicator warn that they are serial, which
is what we want.
"""

from __future__ import annotations

import os

CALM = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "0",
}


def calm_watchdog() -> None:
    """Before a group is made. What an operator has set stays."""
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
