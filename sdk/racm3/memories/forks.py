"""A forked process has none of the threads that OpenMP had made for FAISS and torch, and would wait for them for ever. So it
computes on one thread, unless it says otherwise itself."""

from __future__ import annotations

import os
import sys


def _compute_alone() -> None:
    if (faiss := sys.modules.get("faiss")) is not None:
        faiss.omp_set_num_threads(1)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)
