"""Moving packets between the tunnel device and the link."""
