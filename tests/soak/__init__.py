"""A long life: rekeys, constant traffic, and a fault a minute."""
