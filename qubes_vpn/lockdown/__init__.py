"""The static lock: nft, route and shell files, no Python."""
