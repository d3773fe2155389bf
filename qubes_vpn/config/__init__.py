"""Text to a frozen profile."""
