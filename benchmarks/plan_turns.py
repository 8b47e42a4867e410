"""Memory of a round of students, compiled one turn at a time.

  python -m benchmarks.plan_turns configs/imagenet64.py v5e:4x4 dm

`--plan` compiles a round whole, as it runs. At ImageNet-64 that takes the TPU
compiler more memory than a small machine has; the turns of the generator and
of the fake score take a third each, and the round's peak is that of the larger
turn, since both are given the same state.
"""

import argparse
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from core_jax import loop
from core_jax import mesh as mesh_lib
from core_jax import plan
from core_jax import topology
from msd_jax import data
from msd_jax import networks
from msd_jax import recipe as recipe_lib
from msd_jax import setup
from msd_jax import stages
from msd_jax import turns


def generator_turn(recipe, student, part, key, teacher):
  inputs = turns.draw(
      key, part, recipe.settings.batch_size, recipe.shape, recipe.mesh)
  student, _, metrics = turns.update_generator(
      recipe, student, inputs, None, key, {'teacher': teacher})
  return student, metrics


def fake_turn(recipe, student, part, key, teacher):
  settings = recipe.settings
  x, labels = turns.draw(
      key, part, settings.batch_size, recipe.shape, recipe.mesh)
  real = {'image': x, 'label': labels} if settings.gan else None
  ((fake, head), opt_state), found = turns.update_fake(
      recipe, teacher, ((student.fake, student.head), student.fake_opt_state),
      (x, labels, real, key))
  return student.replace(
      fake=fake, head=head, fake_opt_state=opt_state), found


def stage_of_turn(
    stage: loop.Stage, recipe: turns.Recipe, turn: Any) -> loop.Stage:
  """The stage with one turn for a round."""

  def step(state, batch, frozen):
    del batch
    parts = (frozen['classes'], frozen['sizes'])
    indices = jnp.arange(len(frozen['sizes']))

    def one(student, inputs, key, teacher):
      index, part = inputs
      return turn(
          recipe, student, part, jax.random.fold_in(key, index), teacher)

    students, metrics = mesh_lib.update_students(one, stage.mesh)(
        state.students, (indices, parts), state.key, frozen['teacher'])
    return state.replace(students=students), metrics

  return loop.dataclasses.replace(stage, step=step, batch=loop.no_batch)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('config', help='configs/NAME.py[:variant]')
  parser.add_argument('target', help='as of --plan')
  parser.add_argument('kind', choices=('dm', 'adm'))
  parser.add_argument(
      '--turn', choices=('generator', 'fake'), action='append')
  parser.add_argument(
      '--set', action='append', default=[], metavar='FIELD=VALUE',
      help='of config.compute')
  parser.add_argument(
      '--effort', type=float, default=0., help='-1: the compiler hurries')
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_exec_time_optimization_effort', args.effort)
  path, _, variant = args.config.partition(':')
  module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
  config = module.get_config(variant)
  for change in args.set:
    field, value = change.split('=')
    kind = type(config.compute[field])
    config.compute[field] = value == 'True' if kind is bool else kind(value)
  config.student_stages = args.kind
  target = topology.describe(args.target)
  run = setup.make(config, target.devices, data.declared(config))
  stage = stages.make_stages(run)[-1]
  recipe = recipe_lib.make_recipe(run, args.kind, stage.mesh)
  results = {name: jax.eval_shape(lambda key, m=module: networks.init_params(
      m, key, run.dataset.shape), jax.random.key(0)) for name, module in (
          ('teacher', run.teacher), ('score_matching', run.student))}
  for name in args.turn or ('generator', 'fake'):
    turn = {'generator': generator_turn, 'fake': fake_turn}[name]
    found = plan.plan([stage_of_turn(stage, recipe, turn)], results)
    print(f'{args.config} {args.target} {args.kind}, the turn of the {name}, '
          f'mesh {dict(stage.mesh.shape)}, {config.compute.to_dict()}\n'
          + plan.show(found, target.hbm_bytes), flush=True)


if __name__ == '__main__':
  main()
