"""Other ways to do eventproc's main job, to be measured beside it: `python -m benchmarks.peers.compare`.

The programs here import nothing of eventproc: they run in an environment of their own (`make peers`).
"""
