"""ImageNet at 64x64: four one-step students of EDM's teacher.

  python -m msd_jax.convert edm-imagenet-64x64-cond-adm.pkl teacher
  python -m msd_jax.main --config=configs/imagenet64.py \\
      --config.data_path=imagenet64.zip --config.teacher_workdir=teacher

Settings are DMD2's, and MSD's where they are known. `--plan=v5e:4x4` needs
neither data nor weights. Not run to the end: it takes hundreds of hours of an
H100.

`:s` and `:xs` have students of 42 % and 71 % fewer parameters, `:single` one
student at the compute of four, `:tiny` is for tests. Two may be joined:
`:s+tiny`.
"""

import ml_collections

ADM = dict(
    kind='adm', model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3,
    attention_resolutions=(32, 16, 8), dropout=0.10)
# MSD reports reductions of 42 % and 71 % by fewer channels, and no more: these
# come to 41.6 % and 71.0 %.
SMALLER = {
    's': dict(model_channels=160, channel_mult=(1, 2, 2, 4), num_blocks=3),
    'xs': dict(model_channels=128, channel_mult=(1, 2, 2, 4), num_blocks=2)}


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'edm_zip'
  config.data_path = ''
  config.declared = ml_collections.ConfigDict(dict(
      shape=(64, 64, 3), num_classes=1000, num_train=1_281_167))
  config.sigma_data = 0.5
  config.sigma_min = 0.002
  config.sigma_max = 80.

  config.num_students = 4
  config.partition = 'consecutive'
  config.baselines = ()
  config.student_devices = 0
  config.teacher_workdir = ''
  config.compute = ml_collections.ConfigDict(dict(
      dtype='bfloat16', remat=True, fsdp=True, microbatches=1))

  config.student_stages = 'dm+adm'

  config.log_every_steps = 100
  config.checkpoint_every_steps = 500
  config.keep = 2

  # EDM's training, for those who have no published teacher: 2,500 million
  # images; it clips no gradients.
  config.teacher = ml_collections.ConfigDict(dict(
      network=dict(ADM), num_steps=610_352, batch_size=4096, lr=1e-4,
      warmup_steps=2_441, clip_norm=1e6, weight_decay=0.,
      ema_half_life_steps=12_207., sampler_steps=256))
  config.classifier = None  # FID: python -m msd_jax.measure
  # MSD names no settings of teacher score matching: EDM's, with fewer images.
  config.score_matching = ml_collections.ConfigDict(dict(
      num_steps=100_000, batch_size=1024, lr=1e-4, warmup_steps=1_000,
      clip_norm=1e6, weight_decay=0., ema_half_life_steps=4_000.))
  # MSD: 20,000 iterations at a batch of 128 (probably) for each student. Its
  # learning rate is not known; this is DMD2's. DMD2 averages no weights;
  # FastGen's rate, 0.9999, would leave 14 % of the teacher in these rounds.
  config.students = ml_collections.ConfigDict(dict(
      network=dict(ADM), num_steps=20_000, batch_size=128, ratio=5, lr=2e-6,
      fake_lr=2e-6, warmup_steps=100, clip_norm=10., weight_decay=0.01,
      min_level=20, max_level=980, ema_decay=0.9995,
      fake_network='teacher'))  # or 'student'
  # DMD2 goes on from DM for 140,000 iterations, which are updates of the fake
  # score: 5 to a round. Whether MSD counts so too is not known; its 20,000 are
  # taken for updates of the generator, rounds, or DM would end after 4,000.
  config.adm = ml_collections.ConfigDict(dict(
      num_steps=28_000, lr=5e-7, fake_lr=5e-7, warmup_steps=100,
      gan_weight=ml_collections.FieldReference(3e-3, object),  # or 'matched'
      match_factor=1., critic_weight=1e-2, gan_max_level=999,
      backbone='fake', filter_real=True))
  # DMD's weight is 0.25; MSD's number of pairs is not known.
  config.regression = ml_collections.ConfigDict(dict(
      weight=0., pairs='', filter_pairs=False, distance='lpips'))
  # Song et al. (2023) for one student at ImageNet-64; MSD names no settings.
  config.consistency = ml_collections.ConfigDict(dict(
      num_steps=600_000, batch_size=2048, lr=8e-6, warmup_steps=100,
      clip_norm=1e6, weight_decay=0., num_levels=40, target_decay=0.95,
      ema_decay=0.99994321, distance='lpips'))
  # MSD names none of post-distillation either; these were not tried.
  config.post = ml_collections.ConfigDict(dict(
      workdir='', num_steps=20_000, batch_size=128, lr=1e-5, warmup_steps=100,
      clip_norm=10., weight_decay=0., ema_decay=0.999, distance='lpips'))
  config.lpips_vgg_path = config.lpips_linear_path = ''
  config.brightness_alarm = 1.

  for name in variant.split('+') if variant else ():
    _change(config, name)
  return config


def _change(config, variant):
  if variant in SMALLER:
    config.students.network.update(SMALLER[variant])
  elif variant == 'single':
    for stage in (config.students, config.adm, config.consistency, config.post):
      stage.num_steps *= config.num_students
    config.num_students = 1
  elif variant == 'tiny':
    _make_tiny(config)
  else:
    raise ValueError(
        f"variant {variant!r} is not known; there are ':s', ':xs', ':single' "
        "and ':tiny', joined by +")


def _make_tiny(config):
  config.declared.update(dict(num_classes=4, num_train=32, shape=(3, 3, 3)))
  small = dict(
      model_channels=32, channel_mult=(1,), num_blocks=1,
      attention_resolutions=())
  smaller = config.students.network != config.teacher.network
  config.teacher.network.update(small)
  config.students.network.update(
      small | (dict(model_channels=16) if smaller else {}))
  for stage in (config.teacher, config.score_matching, config.students,
                config.consistency, config.post):
    stage.num_steps, stage.batch_size = 2, 8
  config.students.ratio = config.adm.num_steps = 2
  config.teacher.sampler_steps = 2
  config.num_students = min(config.num_students, 2)
  config.log_every_steps, config.checkpoint_every_steps = 1, 2
