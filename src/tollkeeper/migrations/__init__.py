"""Schema changes, one folder per database, shipped inside the package."""
