"""Requests and answers, what may be shown of them, and the worker whose loop carries them.

The ground floor: it imports nothing of this project. ``exchange`` and ``shown`` need the standard
library only; ``worker`` is what brings gunicorn, llhttp and uvloop, so nothing is imported here.
"""
