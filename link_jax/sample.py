"""Values from a language model: written token by token, or chosen of a list."""

from collections.abc import Callable
from collections.abc import Sequence
import hashlib
import json
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from core_jax import mesh as mesh_lib
from link_jax import lm
from link_jax.likelihood import Likelihood
from link_jax.likelihood import Scorer
from link_jax.likelihood import Text
from link_jax.lm_score import LanguageModel
from link_jax.lm_score import num_tokens

SHORTEST = 32  # prompts and replies are padded to 32, 64, 128, ... tokens


def call_key(seed: int, *identity: str | int) -> jax.Array:
  """The key of one call, of what the call is and not of when it comes.

  `identity` says which call: a rule, a variable, the values so far, a number.
  """
  digest = hashlib.sha256(json.dumps(identity).encode()).digest()
  key = jax.random.key(seed)
  for word in np.frombuffer(digest[:8], '<u4'):
    key = jax.random.fold_in(key, word)
  return key


# Written token by token.


class _Batch(NamedTuple):
  """What a generating program takes, a row for each prompt."""

  prompts: np.ndarray  # int32 [B, P], padded on the left
  lengths: np.ndarray  # int32 [B]
  keys: np.ndarray  # uint32 [B, 2]
  temperature: np.ndarray  # [B]
  top_p: np.ndarray  # [B]
  budgets: np.ndarray  # int32 [B], tokens of a reply
  replies: np.ndarray  # int32 [B, N], -1: room for N tokens


def make_generate(
    config: lm.Config, stop_tokens: tuple[int, ...]
) -> Callable[..., Any]:
  """step((), batch, params) -> ((), replies [B, N], -1 after their end)."""
  stops = jnp.array(stop_tokens, jnp.int32)

  def step(state, batch, params):
    num_rows, width = batch.prompts.shape
    num_new = batch.replies.shape[1]
    places = jnp.arange(width + num_new)[None, :]
    first = (width - batch.lengths)[:, None]  # the place of the first token
    keys = jax.random.wrap_key_data(batch.keys)

    def seen_from(place):  # [B, T] -> bool [B, T, S]
      before = places[:, None] <= place[:, :, None]
      return before & (places[:, None] >= first[:, :, None])

    def going_on(carry):
      t, *_, done = carry
      return (t < batch.budgets.max()) & ~done.all()

    def write_one(carry):
      t, last, cache, replies, done = carry
      token = jax.vmap(draw)(
          jax.vmap(jax.random.fold_in, (0, None))(keys, t),
          lm.logits(params, last), batch.temperature, batch.top_p)
      done |= jnp.isin(token, stops) | (t >= batch.budgets)
      replies = replies.at[:, t].set(jnp.where(done, -1, token))
      place = jnp.full((num_rows, 1), width) + t
      x, cache = lm.hidden(
          params, config, token[:, None], place - first, seen_from(place),
          cache, width + t)
      return t + 1, x[:, 0], cache, replies, done

    x, cache = lm.hidden(
        params, config, batch.prompts,
        jnp.maximum(places[:, :width] - first, 0),
        seen_from(jnp.broadcast_to(places[:, :width], (num_rows, width))),
        lm.empty_cache(config, num_rows, width + num_new))
    *_, replies, _ = jax.lax.while_loop(going_on, write_one, (
        0, x[:, -1], cache, batch.replies, jnp.zeros(num_rows, bool)))
    return state, replies

  return step


def draw(
    key: jax.Array, logits: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
  """One token by logits [V]; the likeliest one at temperature 0.

  Nucleus sampling (arXiv 1904.09751): the likeliest tokens whose probability
  together reaches `top_p`, at least one.
  """
  order = jnp.argsort(-logits)
  scaled = logits[order] / jnp.maximum(temperature, 1e-6)
  p = jax.nn.softmax(scaled)
  kept = jnp.cumsum(p) - p < top_p
  drawn = jax.random.categorical(key, jnp.where(kept, scaled, -jnp.inf))
  return order[jnp.where(temperature > 0, drawn, 0)]


def make_sampler(model: LanguageModel) -> Callable[..., list[str]]:
  """A function that continues prompts; see `sample` below."""
  generate = mesh_lib.compile_step(
      make_generate(model.config, model.stop_tokens), model.mesh, ())

  def sample(
      prompts: Sequence[str],
      keys: Sequence[jax.Array],
      *,
      max_new_tokens: int,
      temperature: float = 0.7,
      top_p: float = 1.,
  ) -> list[str]:
    """Continues each prompt with its own key, whatever the others are.

    Args:
      prompts: texts.
      keys: one for each prompt, from `call_key`.
      max_new_tokens: of a reply; it may end before, at a stop token.
      temperature: 0 takes the likeliest token always.
      top_p: the part of the probability that is drawn from.

    Raises:
      ValueError: a prompt is empty, or too long for the model with its reply.
    """
    if not prompts:
      return []
    batch = _batch(
        model, prompts, keys, max_new_tokens, temperature, top_p)
    _, replies = generate(
        (), mesh_lib.put(batch, model.mesh, P('data')), model.params)
    return [
        model.tokenizer.decode([int(i) for i in reply if i >= 0])
        for reply in np.asarray(replies)[:len(prompts)]]

  return sample


def _batch(model, prompts, keys, max_new_tokens, temperature, top_p):
  """Prompts on the right of rows whose length is a power of two."""
  ids = [encoding.ids[:num_tokens(encoding)]
         for encoding in model.tokenizer.encode_batch(list(prompts))]
  for prompt, tokens in zip(prompts, ids, strict=True):
    if not 0 < len(tokens) <= model.config.context - max_new_tokens:
      raise ValueError(
          f'{prompt[:50]!r} has {len(tokens)} tokens; with '
          f'max_new_tokens={max_new_tokens} it must have 1 to '
          f'{model.config.context - max_new_tokens}')
  num_rows = _round_up(len(ids), model.mesh.shape['data'])
  ids += [ids[-1]] * (num_rows - len(ids))
  keys = [*keys, *[keys[-1]] * (num_rows - len(keys))]
  width = _round_up(max(map(len, ids)), SHORTEST)
  return _Batch(
      prompts=np.array(
          [[0] * (width - len(i)) + list(i) for i in ids], np.int32),
      lengths=np.array([len(i) for i in ids], np.int32),
      keys=np.stack([np.asarray(jax.random.key_data(k)) for k in keys]),
      temperature=np.full(num_rows, temperature, np.float32),
      top_p=np.full(num_rows, top_p, np.float32),
      budgets=np.full(num_rows, max_new_tokens, np.int32),
      replies=np.full(
          (num_rows, _round_up(max_new_tokens, SHORTEST)), -1, np.int32))


def _round_up(n, start):
  """The least of start, 2 start, 4 start, ... that holds n."""
  while start < n:
    start *= 2
  return start


# Chosen of a list.


class Choice(NamedTuple):
  """A candidate that was chosen."""

  index: int  # of the candidates
  likelihood: Likelihood


def choose(
    scorer: Scorer,
    candidates: Sequence[Text],
    num: int,
    key: jax.Array,
    temperature: float = 1.,
) -> list[Choice]:
  """`num` of the candidates by the probability of their values, no two alike.

  Nothing has to be parsed, and nothing is made up: the vocabulary of values
  comes from a knowledge source, and the model says which of them it expects.

  Args:
    scorer: any.
    candidates: the same prefix with different values, or any texts.
    num: how many at most.
    key: from `call_key`.
    temperature: 0 takes the likeliest; above 0 draws without replacement, p
      proportional to exp(value_sum / temperature).

  Returns:
    The chosen ones, in the order in which they were drawn.
  """
  likelihoods = scorer.score(candidates)
  order = gumbel_top_k(
      np.array([x.value_sum for x in likelihoods]), num, key, temperature)
  return [Choice(int(i), likelihoods[i]) for i in order]


def gumbel_top_k(
    log_p: np.ndarray, k: int, key: jax.Array, temperature: float = 1.
) -> np.ndarray:
  """Indices of k draws without replacement (arXiv 1903.06059), [k]."""
  noise = np.asarray(jax.random.gumbel(key, log_p.shape), np.float64)
  return np.argsort(-(log_p + temperature * noise), kind='stable')[:k]
