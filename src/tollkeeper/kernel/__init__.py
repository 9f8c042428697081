"""The nouns every slice shares, in the standard library only: ids, amounts, clock, breaker ..."""
