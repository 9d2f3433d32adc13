"""The first import of diffusers, by one thread at a time."""

from __future__ import annotations

import threading

ONE_AT_A_TIME = threading.RLock()
"""Held by every import of diffusers. Its modules replace themselves while they are imported, and a second thread that
imports them at this moment would get the former ones, which have no classes."""
