"""What every HTTP face shares: problem documents, authentication, limits, middleware."""
