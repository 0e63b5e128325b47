"""Stands next to one instance: registers it, keeps it alive while it is well, and supervises it.

A light program of its own; it needs the standard library and a YAML reader.
"""
