"""Agents of the reference application; each module is imported when the worker starts."""
