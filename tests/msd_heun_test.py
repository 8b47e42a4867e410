"""The sampler's trajectories are those of plain torch, on the same network.

Torch computes in float64, as EDM's sampler does; ours in float32.
"""

import jax
import numpy as np
import pytest

from msd_jax import diffusion
from msd_jax import networks
from msd_jax import published

torch = pytest.importorskip('torch')

from benchmarks import torch_msd  # noqa: E402

ADM = dict(resolution=8, channels=3, num_classes=5, model_channels=32,
           channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,))
N, SIGMA_MIN, SIGMA_MAX, RHO, CHURN_NOISE = 8, .002, 80., 7., 1.003


def heun(denoised, noise, churn, churn_noises):
  """EDM's algorithm 2 from its text; churn at every level."""
  i = torch.arange(N, dtype=torch.float64)
  low, high = SIGMA_MIN**(1 / RHO), SIGMA_MAX**(1 / RHO)
  sigmas = [*((high + i / (N - 1) * (low - high))**RHO), torch.tensor(0.)]
  gamma = min(churn / N, 2**.5 - 1)
  x = sigmas[0] * noise
  for t, t_next, extra in zip(sigmas, sigmas[1:], churn_noises, strict=False):
    t_hat = t + gamma * t
    x_hat = x + (t_hat**2 - t**2).sqrt() * CHURN_NOISE * extra
    d = (x_hat - denoised(x_hat, t_hat)) / t_hat
    x = x_hat + (t_next - t_hat) * d
    if t_next:
      d_next = (x - denoised(x, t_next)) / t_next
      x = x_hat + (t_next - t_hat) * (d + d_next) / 2
  return x


@pytest.mark.parametrize('churn', [0., 4.])
def test_trajectories_are_those_of_torch(churn):
  torch.manual_seed(0)
  peer = torch_msd.ADM(**ADM)
  torch_msd.randomize(peer)
  tensors = {f'model.{name}': value.numpy()
             for name, value in peer.state_dict().items()}
  module = networks.build(
      dict(kind='adm', model_channels=32, channel_mult=(1, 2), num_blocks=1,
           attention_resolutions=(4,), dropout=0.), (8, 8, 3), 5)
  params = published.to_params(tensors, module)
  key, labels = jax.random.key(1), np.array([0, 3])
  noise = np.asarray(jax.random.normal(jax.random.key(0), (2, 8, 8, 3)))
  denoised = diffusion.make_denoiser(networks.apply_fn(module), .5)
  seen, expected = [], []

  def ours(x, sigma):
    jax.debug.callback(lambda x: seen.append(np.array(x)), x, ordered=True)
    return denoised(params, x, sigma, labels)

  end = jax.jit(lambda noise: diffusion.sample(
      ours, noise, key, diffusion.Sampler(
          num_steps=N, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, rho=RHO,
          churn=churn, churn_noise=CHURN_NOISE)))(noise)

  first = lambda x: torch.from_numpy(np.array(x)).double().permute(0, 3, 1, 2)
  last = lambda x: x.permute(0, 2, 3, 1).numpy()
  peer = peer.double()

  def theirs(x, sigma):
    expected.append(last(x))
    return torch_msd.denoise(
        peer, x, sigma.expand(2).double(), torch.from_numpy(labels))

  with torch.no_grad():
    expected_end = last(heun(
        theirs, first(noise), churn,
        [first(jax.random.normal(k, noise.shape))
         for k in jax.random.split(key, N)]))
  assert np.abs(expected_end).max() > .1
  np.testing.assert_allclose(end, expected_end, atol=1e-4)
  # All that the network saw on the way: 2 N - 1 inputs of up to 80 deviations.
  jax.effects_barrier()
  np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-4)
