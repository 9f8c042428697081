"""Access: tenants and API keys. Keys are stored hashed; checking one costs no round trip."""
