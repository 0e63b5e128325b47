"""The native REST API over a registry, its watches, and the sidecar (a program of its own).

Nothing is imported here, so that the sidecar stays light.
"""
