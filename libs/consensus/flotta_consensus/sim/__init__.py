"""A whole cluster in one thread, from one seed.

Every source of chance is a named stream of the seed, every delay is an event of one virtual clock, and nothing
here reads a real clock, a real disk or a real network. So a run is a function of its seed: a failing seed replays
exactly, step for step.

The parts know nothing of any state machine; `process.py` drives the production `Driver` over a manual `RaftHost`,
and the worlds built on it (see tests/simulation) bring machines, clients and models.
"""

from __future__ import annotations
