"""Self-tuning networks: hyperparameters tuned while a model trains."""

from stn_jax import regularize
from stn_jax import schedule
from stn_jax.problem import Problem
from stn_jax.space import bounded
from stn_jax.space import integer
from stn_jax.space import log
from stn_jax.space import positive
from stn_jax.space import real
from stn_jax.state import Optimizers
from stn_jax.state import Settings
from stn_jax.tuner import self_tuning

__all__ = [
    'Optimizers', 'Problem', 'Settings', 'bounded', 'integer', 'log',
    'positive', 'real', 'regularize', 'schedule', 'self_tuning']
