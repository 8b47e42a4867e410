"""Runs the benchmarks: python -m benchmarks.all [--quick] [--json FILE].

Each prints a block of figures; the file maps a benchmark's name to
{ratio, ours_ms, peer_ms, ...}, ratio above 1 where ours is faster.
"""

import argparse
import json
import os
import pathlib
import platform
from typing import Any

from benchmarks import harness
from benchmarks import link
from benchmarks import msd
from benchmarks import nas
from benchmarks import stn

# Each has cases(quick) -> benchmark -> size -> harness.Case.
MODULES = (msd, stn, nas, link)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--quick', action='store_true',
                      help='small sizes, few repeats, no memory')
  parser.add_argument('--json', metavar='FILE', type=pathlib.Path)
  parser.add_argument('--only', metavar='NAME', nargs='+', default=[])
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=0,
                      help='runs of each side (7; with --quick 3)')
  args = parser.parse_args()
  if args.repeats == 1:
    parser.error('--repeats=1: a spread needs 2 or more')
  return args


def main() -> None:
  args = parse()
  harness.prepare(args.threads)
  print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} '
        f'cores, {args.threads} threads, load {os.getloadavg()[0]:.1f}')
  benchmarks = {
      name: sizes for module in MODULES
      for name, sizes in module.cases(args.quick).items()
      if not args.only or name in args.only}
  unknown = set(args.only) - set(benchmarks)
  if unknown:
    raise SystemExit(f'There is no benchmark {", ".join(sorted(unknown))}.')
  repeats = args.repeats or (3 if args.quick else 7)
  results = {}
  for name, sizes in benchmarks.items():
    measured = {}
    for size, case in sizes.items():
      measured[size] = harness.measure(case, repeats, memory=not args.quick)
      print(describe(f'{name}, {size}', measured[size]), flush=True)
    # The last, largest size stands for the benchmark.
    results[name] = measured[size] | {'size': size, 'sizes': measured}
    if args.json:
      args.json.write_text(json.dumps(results, indent=2) + '\n')


def describe(title: str, r: dict[str, Any]) -> str:
  """The figures of one case, as text."""
  side = lambda name: (
      f'{r[f"{name}_ms"]:.1f} ms (spread {r[f"{name}_spread"]:.1f}), '
      f'{r[f"{name}_peak_fraction"]:.0%} of the matrix-product peak')
  others = ', '.join(f'{n} {ms:.1f} ms' for n, ms in r['peers_ms'].items())
  lines = [
      title,
      f'  ratio {r["ratio"]:.2f}',
      f'  ours  {side("ours")}; compiled in {r["compile_seconds"]:.1f} s',
      f'  peer  {side("peer")} ({r["peer"]}; of {others})',
      f'  work  {r["gflop"]:.2f} GFLOP; peak {r["matmul_peak_gflops"]:.0f} '
      'GFLOP/s']
  if 'ours_memory_mb' in r:
    lines.append(
        f'  peak memory  ours {r["ours_memory_mb"]:.0f} MB (compiling '
        f'{r["ours_compile_memory_mb"]:.0f}), peer '
        f'{r["peer_memory_mb"]:.0f} MB')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
