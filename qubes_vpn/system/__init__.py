"""Linux adapters, one resource each."""
