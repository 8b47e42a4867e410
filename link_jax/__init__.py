"""Long-tail knowledge from symbolic rules (LINK, arXiv 2311.07237)."""

from link_jax.generate import generate as make_statements
from link_jax.likelihood import Likelihood
from link_jax.likelihood import Scorer
from link_jax.likelihood import Text
from link_jax.rulefile import load as load_rules

__all__ = ['Likelihood', 'Scorer', 'Text', 'load_rules', 'make_statements']
