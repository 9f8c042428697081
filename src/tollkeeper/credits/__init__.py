"""The ledger: prepaid credits, exact under any load and failure."""
