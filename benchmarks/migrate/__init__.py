"""What migrations and backups cost a ledger that works meanwhile."""
