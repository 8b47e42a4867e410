"""What a run leaves to look at: summary.json and report.html."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import json
import math
import mimetypes
import numbers
import os
import pathlib
import platform
import re
from typing import Any

from flax import traverse_util
import jax
import jinja2
import ml_collections
import numpy as np

from core_jax import folder
from core_jax import hosts
from core_jax import metrics as metrics_lib
from core_jax.curves import plot_curves

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@dataclasses.dataclass(frozen=True)
class Heading:
  """Starts a part of the report."""
  text: str


@dataclasses.dataclass(frozen=True)
class Text:
  """One paragraph."""
  paragraph: str


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture file, which the report takes in."""
  path: str | os.PathLike
  caption: str


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells: text, numbers, or None where there is nothing to say."""
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  caption: str


Section = Heading | Text | Figure | Table


def environment() -> dict[str, str | int | None]:
  """Where this process runs: devices, platform and versions, all flat."""
  device = jax.devices()[0]
  versions = {f'{name.replace("-", "_")}_version': _version(name)
              for name in PACKAGES}
  return {
      'device': device.platform,
      'device_kind': device.device_kind,
      'device_count': jax.device_count(),
      'process_count': jax.process_count(),
      'cpu_count': os.cpu_count(),
      'platform': platform.platform(),
      'python_version': platform.python_version(),
      **versions,
  }


def write_summary(workdir: str | os.PathLike, figures: Mapping[str, Any], *,
                  seed: int, steps: int, wall_seconds: float
                  ) -> dict[str, Any]:
  """Writes `summary.json`, flat, and returns what it holds.

  Args:
    workdir: the run's folder.
    figures: final results by name; the names of nested ones are joined by
      '_', and what is not finite becomes null.
    seed: the run's seed.
    steps: steps over all stages.
    wall_seconds: wall time of the process that ended the run; what it resumed
      from is in `metrics.jsonl`, as the seconds of each line.
  """
  run = {'seed': int(seed), 'steps': int(steps),
         'wall_seconds': round(float(wall_seconds), 3), **environment()}
  flat = traverse_util.flatten_dict(dict(figures), sep='_')
  if clash := set(flat) & set(run):
    raise ValueError(f'figures named {sorted(clash)}: reserved names')
  summary = {name: _plain(name, x) for name, x in flat.items()} | run
  if hosts.is_first():
    path = pathlib.Path(workdir) / 'summary.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text(
        path, json.dumps(summary, indent=2, allow_nan=False) + '\n')
  return summary


def write_report(
    workdir: str | os.PathLike, *, title: str, lead: str,
    sections: Sequence[Section], config: Mapping[str, Any], command: str
    ) -> pathlib.Path:
  """Writes `report.html`, one page that needs no other file.

  After the sections it shows the curves of metrics.jsonl, the run (from
  summary.json if that is there, so call write_summary before), the command
  and the config.

  Args:
    workdir: the run's folder.
    title: the page's title.
    lead: one paragraph that says what is to be seen.
    sections: the results, in order.
    config: a ConfigDict or another mapping.
    command: what runs this again.

  Returns:
    The page's path.
  """
  path = pathlib.Path(workdir) / 'report.html'
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  courses = [Figure(p, f'Stage: {p.stem.removeprefix("curves_")}')
             for p in plot_curves(workdir)]
  html = _template().render(
      title=title, lead=lead, command=command,
      sections=[_view(section) for section in sections],
      curves=[_view(figure) for figure in courses],
      run=_run_rows(path.with_name('summary.json'), config),
      config=json.dumps(config, indent=2, default=str))
  folder.write_text(path, html)
  return path


def format_number(value: float) -> str:
  """Three significant digits; whole numbers in full."""
  if isinstance(value, numbers.Integral):
    return f'{value:,}' if abs(value) >= 10_000 else str(value)
  if not math.isfinite(value) or value == 0:
    return f'{value:.0f}'
  rounded = float(f'{value:.3g}')
  if 1e3 <= abs(rounded) < 1e6:
    return f'{rounded:,.0f}'
  return f'{rounded:#.3g}'.removesuffix('.')


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _plain(name, value):
  """A value that strict JSON knows."""
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if np.ndim(value) != 0:
    raise TypeError(f'{name} is no scalar: shape {np.shape(value)}')
  value = np.asarray(value).item()
  return metrics_lib.or_null(value) if isinstance(value, float) else value


def _view(section):
  """What the template shows of a section."""
  match section:
    case Heading(text):
      return {'kind': 'heading', 'text': text}
    case Text(paragraph):
      return {'kind': 'text', 'text': paragraph}
    case Figure(path, caption):
      media = mimetypes.guess_type(str(path))[0] or 'image/png'
      data = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
      return {'kind': 'figure', 'caption': caption,
              'uri': f'data:{media};base64,{data}'}
    case Table(columns, rows, caption):
      for row in rows:
        if len(row) != len(columns):
          raise ValueError(f'table {caption!r}: {len(columns)} columns, but '
                           f'a row of {len(row)}: {row}')
      numeric = [all(_is_number(row[i]) for row in rows)
                 for i in range(len(columns))]
      return {'kind': 'table', 'caption': caption,
              'head': list(zip(columns, numeric, strict=True)),
              'rows': [list(zip(map(_cell, row), numeric, strict=True))
                       for row in rows]}
  raise TypeError(f'not a section: {section!r}')


def _is_number(cell):
  """Numbers, and texts such as '0.28 +- 0.02'."""
  if isinstance(cell, str):
    return bool(re.match(r'[-+<>~±−]?\s*[\d.]', cell))
  return cell is None or isinstance(cell, numbers.Number)


def _cell(cell):
  if cell is None:
    return '–'
  if isinstance(cell, (bool, np.bool_)):
    return 'yes' if cell else 'no'
  if isinstance(cell, (jax.Array, np.ndarray)) and cell.ndim == 0:
    cell = cell.item()
  return format_number(cell) if isinstance(cell, numbers.Real) else str(cell)


def _run_rows(summary_path, config):
  """The run in a few lines: (what, value)."""
  if summary_path.exists():
    facts = json.loads(summary_path.read_text())
  else:
    facts = {'seed': config.get('seed')} | environment()
  versions = ', '.join(
      f'{key.removesuffix("_version").replace("_", "-")} {value}'
      for key, value in facts.items() if key.endswith('_version'))
  seconds = facts.get('wall_seconds')
  rows = {
      'seed': facts.get('seed'),
      'steps': facts.get('steps'),
      'wall time': None if seconds is None else _duration(seconds),
      'devices': f'{facts["device_count"]} x {facts["device_kind"]}',
      'processes': facts['process_count'],
      'CPU cores': facts['cpu_count'],
      'platform': facts['platform'],
      'versions': versions,
  }
  return [(what, _cell(x)) for what, x in rows.items() if x is not None]


def _duration(seconds):
  """287.4 -> '4 min 47 s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  parts = ((hours, 'h'), (minutes, 'min'), (seconds, 's'))
  first = next((i for i, (n, _) in enumerate(parts) if n), 2)
  return ' '.join(f'{n} {unit}' for n, unit in parts[first:])


def _template():
  return jinja2.Environment(
      autoescape=True, trim_blocks=True, lstrip_blocks=True,
      undefined=jinja2.StrictUndefined).from_string(PAGE)


PAGE = '''\
{% macro show(section) %}
{% if section.kind == 'heading' %}
<h2>{{ section.text }}</h2>
{% elif section.kind == 'text' %}
<p>{{ section.text }}</p>
{% elif section.kind == 'figure' %}
<figure>
<img alt="{{ section.caption }}" src="{{ section.uri }}">
<figcaption>{{ section.caption }}</figcaption>
</figure>
{% else %}
<figure>
<figcaption>{{ section.caption }}</figcaption>
<div class="wide"><table>
<thead><tr>
{% for name, numeric in section.head %}
<th scope="col"{% if numeric %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in section.rows %}
<tr>
{% for cell, numeric in row %}
<td{% if numeric %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
</figure>
{% endif %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #626a73;
  --rule: #dde1e6; --ground: #ffffff; --block: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe3e8; --quiet: #98a1ab; --rule: #363c44;
    --ground: #16191d; --block: #20252b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 50rem;
  color: var(--ink); background: var(--ground);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--rule); }
p { margin: 0 0 1rem; max-width: 42rem; }
.lead { font-size: 1.1rem; color: var(--quiet); }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; padding: .5rem;
  background: #fff; border: 1px solid var(--rule); border-radius: 6px; }
figcaption { margin: .5rem 0; font-size: .875rem; color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9375rem; }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
thead th { vertical-align: bottom; border-bottom-color: var(--quiet); }
.wide td:first-child { min-width: 9rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tr > .number:last-child { padding-right: 0; }
.run th { color: var(--quiet); font-weight: 400; white-space: nowrap; }
.run td { overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .8rem 1rem; margin: .75rem 0 1.25rem;
  background: var(--block); border-radius: 6px; font: .8125rem/1.5
  ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.command { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { margin-top: 1rem; cursor: pointer; color: var(--quiet); }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% for section in sections %}
{{ show(section) }}
{% endfor %}
{% if curves %}
<h2>Curves</h2>
<p>What was logged, by step. A noisy metric is light, its running mean dark.</p>
{% for curve in curves %}
{{ show(curve) }}
{% endfor %}
{% endif %}
<h2>Run</h2>
<pre class="command">{{ command }}</pre>
<table class="run">
{% for what, value in run %}
<tr><th scope="row">{{ what }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
<details>
<summary>Config</summary>
<pre>{{ config }}</pre>
</details>
</body>
</html>
'''
