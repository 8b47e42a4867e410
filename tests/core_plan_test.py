"""Plans: operations counted, verdicts, devices that are not here."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import pytest

from core_jax import flops
from core_jax import plan
from core_jax import topology
from tests import core_loop_test

GIB = 2**30


def count(f, *shapes):
  return flops.count(jax.make_jaxpr(f)(*map(jnp.zeros, shapes)))


def test_a_product_counts_two_for_each_multiplication():
  assert count(jnp.matmul, (2, 3), (3, 5)) == 2 * 2 * 3 * 5


def test_a_scan_counts_as_often_as_it_turns():
  def f(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]
  assert count(f, (2, 3), (3, 3)) == 7 * 2 * 2 * 3 * 3


def test_a_convolution_counts_its_window_at_each_pixel():
  def f(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  assert count(f, (1, 8, 8, 4), (3, 3, 4, 6)) == 2 * 64 * 6 * 9 * 4


def test_a_gradient_counts_both_of_its_products():
  loss = lambda w, x: jnp.sum(jnp.square(x @ w))
  assert count(jax.grad(loss, (0, 1)), (3, 5), (2, 3)) == 3 * 2 * 2 * 3 * 5


def test_the_branches_of_a_cond_count_as_the_dearest():
  f = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)
  assert count(f, (3, 3)) == 2 * 27


def test_what_nothing_reads_does_not_count():
  def f(x):
    x @ x  # noqa: B018
    return x @ x
  assert count(f, (3, 3)) == 2 * 27


def stage_plan(state=1, temporary=1, needed=None):
  return plan.StagePlan(
      num_steps=3, state_bytes=state * GIB, batch_bytes=0, frozen_bytes=0,
      temporary_bytes=None if needed else temporary * GIB,
      needed_bytes=(needed or state + temporary) * GIB, gflop=5.,
      state_parts={'params': state * GIB})


KNOBS = {'state': ['fsdp=True'], 'temporary': ['remat=True']}


@pytest.mark.parametrize('found, verdict', [
    (stage_plan(), 'fits: 2,048.0 MiB of 4,096.0 MiB'),
    (stage_plan(temporary=4), 'DOES NOT FIT: 5,120.0 MiB of 4,096.0 MiB; '
     'turn, in this order: remat=True; fsdp=True'),
    (stage_plan(state=4), 'turn, in this order: fsdp=True; remat=True'),
    (stage_plan(needed=9), 'temporary unknown'),
    (stage_plan(needed=9), 'DOES NOT FIT: 9,216.0 MiB of 4,096.0 MiB'),
])
def test_a_plan_says_whether_it_fits_and_what_to_turn(found, verdict):
  assert verdict in '\n'.join(
      plan.show([('one', found)], 4 * GIB, KNOBS))


@pytest.mark.parametrize('name, message', [
    ('v5e', 'KIND:SHAPE'), ('v9:2x2', 'v4, v5e, v5p, v6e'),
    ('v5e:4', 'such as v5e:4x4'), ('a100', 'h100')])
def test_a_target_that_there_is_not_is_named_with_those_there_are(
    name, message):
  with pytest.raises(topology.TopologyError, match=message):
    topology.describe(name)


def test_without_the_tpu_compiler_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(topology.TopologyError, match=r'extra \[tpu\]'):
    topology.describe('v5e:4x4')


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='the extra [tpu]')
@pytest.mark.parametrize('name, devices', [
    ('v4:2x2x1', 4), ('v5e:1x1', 1), ('v5p:2x2x2', 8), ('v6e:2x4', 8),
    ('h100', 1)])
def test_a_stage_is_planned_for_devices_that_are_not_here(name, devices):
  target = topology.describe(name)
  stage = core_loop_test.line_stage(devices=target.devices)
  found = dict(plan.plan([stage]))['line']
  assert len(target.devices) == devices
  assert found.batch_bytes == 2 * 16 * 4 / devices
  assert found.needed_bytes < target.hbm_bytes
