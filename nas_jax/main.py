"""Searches recurrent cells: python -m nas_jax.main --help."""

from core_jax import cli
from nas_jax import train

if __name__ == '__main__':
  cli.run('nas_jax', 'nas_markov', train.train_and_evaluate, train.show_plan)
