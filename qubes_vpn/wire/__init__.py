"""Bytes to frozen values and back: no key, no clock, no state."""
