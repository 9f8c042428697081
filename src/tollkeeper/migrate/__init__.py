"""The schema runner: plain SQL files, applied in order, once, by one runner at a time."""
