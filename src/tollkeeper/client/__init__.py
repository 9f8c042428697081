"""What callers import: HTTP connections to a Tollkeeper service, keys minted and kept."""
