"""Tunes a model's hyperparameters in one run: python -m stn_jax.main --help."""

from core_jax import cli
from stn_jax import train

if __name__ == '__main__':
  cli.run('stn_jax', 'stn_digits', train.train_and_evaluate, train.show_plan)
