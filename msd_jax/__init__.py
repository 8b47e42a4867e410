"""Multi-Student Distillation of diffusion models (arXiv 2410.23274)."""

from msd_jax.export import open_students
from msd_jax.given import students as load
from msd_jax.routing import generate

__all__ = ['generate', 'load', 'open_students']
