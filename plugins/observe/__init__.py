"""Discovery plugins: which slimd answers for an overlay address."""
