"""What dom0, or a management qube, does to VPN qubes: plans of Admin API calls.

Nothing here parses what came from a network, and nothing of ours but
`qubes_vpn.errors` is imported: this package is all that dom0 gets.
"""
