"""Tunes a model's hyperparameters in one run:

  python -m stn_jax.main                                  # digits, minutes
  python -m stn_jax.main --config=configs/stn_fashion.py --config.seed=1
  python -m stn_jax.main --plan                           # bytes and FLOPs

then trains the plain model by what it found, searches the same space, and
shows it all in <workdir>/report.html. The same command in the same folder
goes on where it stopped.
"""

from core_jax import cli
from stn_jax import train

if __name__ == '__main__':
  cli.run('stn_jax', 'stn_digits', train.train_and_evaluate, train.show_plan)
