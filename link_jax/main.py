"""Searches for long-tail statements: python -m link_jax.main --help."""

from core_jax import cli
from link_jax import bounds
from link_jax import run

if __name__ == '__main__':
  cli.run('link_jax', 'link_default', run.run, bounds.show)
