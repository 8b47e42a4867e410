"""Architecture search of recurrent cells, and what its controller knows."""

from nas_jax.child import Child
from nas_jax.child import negative_log_likelihood
from nas_jax.export import module_text
from nas_jax.export import to_flax_params
from nas_jax.space import SPACES
from nas_jax.space import Cell
from nas_jax.space import Space

__all__ = [
    'Cell', 'Child', 'SPACES', 'Space', 'module_text',
    'negative_log_likelihood', 'to_flax_params']
