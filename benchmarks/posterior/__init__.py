"""Statistics of experiments beside libraries that people use for them."""
