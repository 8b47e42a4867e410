"""Long-tail knowledge from symbolic rules (LINK, arXiv 2311.07237)."""
