"""Distils a teacher into K one-step students: python -m msd_jax.main --help."""

from core_jax import cli
from msd_jax import train

if __name__ == '__main__':
  cli.run('msd_jax', 'digits', train.train_and_evaluate, train.show_plan,
          several_processes=True)
