"""What the network may do in each phase, as data."""
