"""The nouns every slice shares: errors, ids, amounts, clock, backoff. Standard library only."""
