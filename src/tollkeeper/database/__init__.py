"""Everything that speaks PostgreSQL below the stores: pool, named queries, embedded server."""
