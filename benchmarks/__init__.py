"""Speed against peers, measured in one run and told as ratios."""
