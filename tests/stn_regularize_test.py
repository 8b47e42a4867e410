"""Regularisers: against closed forms, numpy and other libraries."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageEnhance
import pytest

from stn_jax import regularize

KEY = jax.random.key(0)


def full(value, n=2):
  return jnp.full(n, value, jnp.float32)


def images(*shape):
  return jax.random.uniform(jax.random.key(1), shape)


@pytest.fixture
def ends(monkeypatch):
  """Every uniform draw is the end of its range that is asked for."""

  def fix(upper):
    monkeypatch.setattr(
        regularize, '_uniform',
        lambda key, low, high: jnp.broadcast_to(high if upper else low,
                                                low.shape))

  return fix


def test_dropout_zeroes_by_each_examples_rate_and_keeps_the_mean():
  rate = jnp.array([0.0, 0.2, 0.7])
  x = jnp.ones((3, 100_000))
  y = np.asarray(regularize.dropout(KEY, x, rate))
  np.testing.assert_allclose((y == 0).mean(axis=1), rate, atol=5e-3)
  np.testing.assert_allclose(y.mean(axis=1), 1, atol=0.015)
  np.testing.assert_array_equal(y[0], x[0])
  np.testing.assert_allclose(y[2].max(), 1 / 0.3, rtol=1e-6)


def test_dropout_of_bfloat16_has_the_mask_of_float32():
  rate = jnp.full(2, 0.003)
  y, low = (regularize.dropout(KEY, jnp.ones((2, 50_000), dtype), rate)
            for dtype in (jnp.float32, jnp.bfloat16))
  assert low.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y == 0, low == 0)


def test_dropout_has_one_mask_along_shared_axes():
  x, rate = jnp.ones((2, 5, 6, 50)), full(0.5)
  channels = np.asarray(regularize.dropout(KEY, x, rate, (1, 2)))
  assert (channels == channels[:, :1, :1]).all()
  assert 0 < (channels[0, 0, 0] == 0).sum() < 50
  in_time = np.asarray(regularize.dropout(KEY, x[:, :, 0], rate, (-2,)))
  assert (in_time == in_time[:, :1]).all()
  assert (channels[0] != channels[1]).any()


def test_dropconnect_and_word_masks_keep_the_mean():
  mask = np.asarray(regularize.dropconnect_mask(
      KEY, (300, 300), jnp.float32(0.4)))
  assert set(np.unique(mask)) == {0, np.float32(1) / np.float32(0.6)}
  np.testing.assert_allclose(mask.mean(), 1, atol=0.01)
  tokens = jax.random.randint(KEY, (20, 50), 0, 30)
  words = np.asarray(regularize.word_mask(KEY, tokens, 30, jnp.float32(0.4)))
  assert words.shape == (20, 50, 1)
  for word in range(30):  # A word is dropped wherever it stands.
    assert len(np.unique(words[np.asarray(tokens) == word])) == 1
  assert len(np.unique(words)) == 2


def test_activation_penalties_are_means_of_squares_and_of_changes():
  h = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
  strength = jnp.array([2.0, 0.5])
  np.testing.assert_allclose(
      regularize.activation_penalty(h, strength),
      strength * (h**2).mean(axis=(1, 2)), rtol=1e-6)
  np.testing.assert_allclose(
      regularize.temporal_activation_penalty(h, strength),
      strength * (np.diff(h, axis=1)**2).mean(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize(('outputs', 'rtol'), [(1, 1e-5), (3, 0.03)])
def test_the_jacobian_norm_is_that_of_the_whole_jacobian(outputs, rtol):
  """Exact for one output; for more, unbiased: the mean of 20,000 draws."""
  w = jax.random.normal(KEY, (4, outputs))
  f = lambda x: jnp.tanh(x @ w)
  x = jax.random.normal(jax.random.key(1), (2, 4))
  exact = jnp.stack([jnp.sum(jax.jacobian(f)(row)**2) for row in x])
  keys = jax.random.split(KEY, 20_000 if outputs > 1 else 1)
  found = jax.vmap(lambda key: regularize.squared_norm(
      regularize.projected_jacobian(f, x, key)))(keys)
  np.testing.assert_allclose(found.mean(axis=0), exact, rtol=rtol)


def test_input_scale_is_between_a_factor_and_its_inverse():
  x = jnp.ones((20_000, 2))
  factor = np.asarray(regularize.input_scale(KEY, x, full(0.3, 20_000)))
  assert (factor[:, 0] == factor[:, 1]).all()
  np.testing.assert_allclose(
      [factor.min(), factor.max()], [1 / 1.3, 1.3], atol=1e-3)


@pytest.mark.parametrize('upper', [True, False])
@pytest.mark.parametrize(('ours', 'theirs'), [
    (regularize.brightness, ImageEnhance.Brightness),
    (regularize.contrast, ImageEnhance.Contrast),
    (regularize.saturation, ImageEnhance.Color)])
def test_colours_change_as_pillows_do(ends, ours, theirs, upper):
  """By the same factor, 1.4 or 0.6; Pillow rounds to bytes on its way."""
  ends(upper)
  rgb = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  found = ours(KEY, jnp.asarray(rgb / np.float32(255)), full(0.4)) * 255
  for image, row in zip(rgb, found, strict=True):
    expected = theirs(Image.fromarray(image)).enhance(1.4 if upper else 0.6)
    np.testing.assert_allclose(row, np.asarray(expected), atol=1.6)


@pytest.mark.parametrize('upper', [True, False])
def test_hue_turns_as_in_hsv(ends, upper):
  ends(upper)
  rgb = np.asarray(images(2, 4, 4, 3)).copy()
  rgb[0, 0] = [[1, 0, 0], [0, 1, 0], [.3, .3, .3], [0, 0, 0]]
  found = regularize.hue(KEY, jnp.asarray(rgb), full(0.2))

  def turned(pixel):
    h, s, v = colorsys.rgb_to_hsv(*map(float, pixel))
    return colorsys.hsv_to_rgb((h + (0.2 if upper else -0.2)) % 1, s, v)

  np.testing.assert_allclose(
      found, np.apply_along_axis(turned, -1, rgb), atol=2e-6)


def test_draws_fill_their_range():
  grey = jnp.full((20_000, 1, 1, 1), 0.5)
  factor = regularize.brightness(KEY, grey, full(0.4, 20_000)) / 0.5
  np.testing.assert_allclose(
      [factor.min(), factor.max(), factor.mean()], [0.6, 1.4, 1], atol=0.01)


def moved(x, degrees=0.0, translate=0.0, scale=0.0, shear=0.0):
  return regularize.affine(
      KEY, x, degrees=full(degrees), translate=full(translate),
      scale=full(scale), shear=full(shear))


@pytest.mark.parametrize(('upper', 'turns'), [(True, 1), (False, -1)])
def test_a_rotation_by_a_right_angle_is_numpys(ends, upper, turns):
  ends(upper)
  x = images(2, 7, 7, 3)
  np.testing.assert_allclose(
      moved(x, degrees=90.0), np.rot90(x, turns, axes=(1, 2)), atol=1e-5)


def test_a_translation_by_whole_pixels_moves_them_and_fills_with_zeros(ends):
  ends(True)
  x = images(2, 8, 8, 1)
  found = moved(x, translate=0.25)
  np.testing.assert_allclose(found[:, 2:, 2:], x[:, :-2, :-2], atol=1e-5)
  np.testing.assert_allclose(found[:, :2], 0, atol=1e-5)


def test_a_zoom_spreads_from_the_centre_and_a_shear_leans_columns(ends):
  ends(True)
  bright = jnp.zeros((2, 9, 9, 1)).at[:, 4, 6].set(1.0)
  zoomed = moved(bright, scale=0.5)[0, :, :, 0]  # From 2 off to 3 off.
  assert np.unravel_index(np.argmax(zoomed), zoomed.shape) == (4, 7)
  leaning = moved(bright, shear=45.0)[0, :, :, 0]  # Rows move by columns.
  assert np.unravel_index(np.argmax(leaning), leaning.shape) == (6, 6)


@pytest.mark.parametrize(('length', 'centre', 'first', 'last'), [
    (8, 16, 12, 19), (5, 10, 7, 11), (8, 1, 0, 4), (8, 31, 27, 31)])
def test_a_square_covers_its_pixels_and_is_cut_at_the_border(
    length, centre, first, last):
  mask = regularize.covered(jnp.array([[centre]]), jnp.float32([length]), 32)
  np.testing.assert_array_equal(
      np.flatnonzero(mask[0, 0]), np.arange(first, last + 1))


def test_a_square_of_no_length_covers_nothing():
  assert not regularize.covered(jnp.array([[3]]), jnp.zeros(1), 32).any()


def test_cutout_cuts_as_many_squares_as_each_example_has():
  x = jnp.ones((300, 32, 32, 1))
  holes = jnp.arange(300) % 4.0
  y = np.asarray(regularize.cutout(KEY, x, holes, full(6.0, 300), 4))
  gone = (y == 0).sum(axis=(1, 2, 3))
  for number in range(4):
    some = gone[np.asarray(holes) == number]
    assert some.max() <= 36 * number
    assert number == 0 or some.max() > 36 * (number - 1)
    assert number == 0 or some.min() >= 9  # A corner has a quarter.


def test_nothing_changes_at_strength_zero():
  x, none = images(2, 8, 8, 3), full(0.0)
  for change in (regularize.brightness, regularize.contrast,
                 regularize.saturation, regularize.hue, regularize.dropout,
                 regularize.input_scale):
    changed = change(KEY, x, none)
    np.testing.assert_allclose(changed, x, atol=1e-6, err_msg=change.__name__)
  np.testing.assert_allclose(moved(x), x, atol=1e-5)
  np.testing.assert_array_equal(
      regularize.cutout(KEY, x, none, full(8.0), 3), x)
  np.testing.assert_array_equal(
      regularize.dropconnect_mask(KEY, (3, 3), jnp.float32(0)), np.ones((3, 3)))
