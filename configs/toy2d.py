"""Eight classes in the plane, each a mixture of eight Gaussians.

  python -m msd_jax.main --config=configs/toy2d.py

K = 8 students smaller than the teacher; `--config.num_students=1` is one
student, at the same rounds and batch. The l1 distance to the teacher's
samples falls with K, from 0.725 ± 0.027 to 0.540 ± 0.030 at K = 8 over three
seeds, on two CPU cores (docs/msd.md).
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'toy2d'
  config.data_path = ''
  config.sigma_data = 0.5
  config.sigma_min = 0.002
  config.sigma_max = 20.  # 40 deviations of the data

  config.num_students = 8
  config.partition = 'consecutive'
  config.baselines = ()
  config.student_devices = 0
  config.teacher_workdir = ''
  config.compute = ml_collections.ConfigDict(dict(
      dtype='float32', remat=False, fsdp=False, microbatches=1))

  # Stages of the students, joined by +: dm, adm, consistency, post.
  config.student_stages = 'dm'

  config.log_every_steps = 200
  config.checkpoint_every_steps = 1000
  config.keep = 1

  config.teacher = ml_collections.ConfigDict(dict(
      network=dict(kind='mlp', width=96, depth=3), num_steps=6000,
      batch_size=1024, lr=2e-3, warmup_steps=100, clip_norm=1.,
      weight_decay=0., ema_half_life_steps=500., sampler_steps=18))
  config.classifier = None  # l1 in the plane needs no features
  config.score_matching = ml_collections.ConfigDict(dict(
      num_steps=3000, batch_size=1024, lr=2e-3, warmup_steps=100, clip_norm=1.,
      weight_decay=0., ema_half_life_steps=300.))
  config.students = ml_collections.ConfigDict(dict(
      network=dict(kind='mlp', width=32, depth=2), num_steps=1200,
      batch_size=256, ratio=5, lr=1e-3, fake_lr=1e-3, warmup_steps=50,
      clip_norm=10., weight_decay=0.01, min_level=20, max_level=980,
      ema_decay=0.99, fake_network='teacher'))  # or 'student'
  # What 'adm' has other than 'students'.
  config.adm = ml_collections.ConfigDict(dict(
      num_steps=1200, lr=1e-3, fake_lr=1e-3, warmup_steps=20,
      gan_weight=ml_collections.FieldReference(3e-3, object),  # or 'matched'
      match_factor=1., critic_weight=1e-2, gan_max_level=999,
      backbone='fake', filter_real=True))
  config.regression = None  # pairs are of images
  config.consistency = ml_collections.ConfigDict(dict(
      num_steps=4800, batch_size=256, lr=1e-3, warmup_steps=20,
      clip_norm=10., weight_decay=0., num_levels=18, target_decay=0.95,
      ema_decay=0.98, distance='l2'))
  config.post = None
  # Deviations of the real images' brightness that call for a warning.
  config.brightness_alarm = 1.
  config.evaluation = ml_collections.ConfigDict(dict(num_samples=100_000))

  if variant == 'tiny':
    for stage in (config.teacher, config.score_matching, config.students,
                  config.consistency):
      stage.num_steps, stage.batch_size = 4, 16
    config.adm.num_steps = 4
    config.num_students = 2
    config.teacher.network.width = 16
    config.teacher.sampler_steps = 4
    config.students.network.width = 8
    config.log_every_steps, config.checkpoint_every_steps = 2, 2
    config.evaluation.num_samples = 10_000
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")
  return config
