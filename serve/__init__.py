"""Pictures over HTTP: many requests share the batches of one pipeline, and every step is a chance to join.

Three parts know only the messages between them (`messages.py`): the HTTP front (`http/`, `desk.py`), the scheduler
(`scheduler.py`) and the engine (`engine.py`). Scheduler and engine live in a process of their own (`worker.py`), which
the front starts, watches and replaces (`supervisor.py`). docs/serving.md shows how it is used.
"""
