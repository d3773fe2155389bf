"""What is particular to Qubes OS."""
