"""Performing the effects of the core, in order."""
