"""Long-tail knowledge from symbolic rules (LINK, arXiv 2311.07237)."""

try:
  from link_jax.generate import generate as make_statements
  from link_jax.likelihood import Likelihood
  from link_jax.likelihood import Scorer
  from link_jax.likelihood import Text
  from link_jax.rulefile import load as load_rules
except ModuleNotFoundError as e:
  # Of an error with the package's name `python -m` shows no traceback.
  raise ImportError(f'{e}: install the extra [link] of this package',
                    name=__name__) from e

__all__ = ['Likelihood', 'Scorer', 'Text', 'load_rules', 'make_statements']
