"""The report's page as text: one style sheet and one template, no file and no address outside.

A Python module and not a ``.j2`` file, for Flower's app bundle carries no other suffix.
The markup closes every element, so the page is well-formed XML too.
"""

from __future__ import annotations

from atlas_flwr.results.series import HEAT, HEAT_DARK, PALETTE, PALETTE_DARK


def _variables(palette: tuple[str, ...], heat: tuple[str, ...]) -> str:
    named = {"s": palette, "h": heat}.items()
    return "".join(f"--{k}{i}:{colour};" for k, them in named for i, colour in enumerate(them))


CSS = (
    f":root{{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1d2126;--quiet:#6a717b;"
    f"--rule:#e3e1dc;--good:#0b6b4d;--bad:#a93a10;{_variables(PALETTE, HEAT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{--page:#14171a;--card:#1b1f23;--ink:#e9ebed;"
    f"--quiet:#9aa2ac;--rule:#30363d;--good:#4fd1a5;--bad:#ff9466;"
    f"{_variables(PALETTE_DARK, HEAT_DARK)}}}}}"
    f"@media print{{:root{{--page:#fff;--card:#fff;--ink:#000;--quiet:#555;--rule:#ccc;"
    f"{_variables(PALETTE, HEAT)}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:clamp(26px,5vw,38px);line-height:1.15;letter-spacing:-.02em;margin:6px 0 8px;
overflow-wrap:anywhere}
h2{font-size:20px;letter-spacing:-.01em;margin:48px 0 4px}
h3{font-size:15px;margin:0 0 2px}
p{margin:0 0 12px;max-width:68ch}
.lead{font-size:17px;color:var(--quiet);overflow-wrap:anywhere}
.quiet,figcaption,caption{color:var(--quiet);font-size:14px}
.kicker{font-size:13px;letter-spacing:.08em;text-transform:uppercase;color:var(--quiet)}
.status{font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}
.facts{display:flex;flex-wrap:wrap;gap:1px;
margin:28px 0 0;padding:0;background:var(--rule);border:1px solid var(--rule);border-radius:12px;
overflow:hidden}
.facts div{background:var(--card);padding:16px 18px;flex:1 1 150px}
.facts dt{font-size:13px;color:var(--quiet)}
.facts dd{margin:2px 0 0;font-size:26px;font-weight:650;letter-spacing:-.02em;
font-variant-numeric:tabular-nums;white-space:nowrap}
.facts small{display:block;font-size:13px;font-weight:400;letter-spacing:0;color:var(--quiet);
white-space:normal}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:20px;
margin-top:18px;grid-auto-flow:dense}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:16px 16px 10px;break-inside:avoid;min-width:0}
figcaption{margin-bottom:8px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--quiet);font-size:12px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--ink);stroke-width:1}
.fence{stroke:var(--quiet);stroke-width:1;stroke-dasharray:2 3}
.wide .pan{overflow-x:auto}figure.wide{grid-column:1/-1}
.gap{fill:var(--quiet);fill-opacity:.4}
@media (min-width:861px),print{figure.lone{grid-column:1/-1;display:grid;column-gap:28px;
grid-template-columns:2fr 3fr;grid-template-rows:auto auto auto 1fr}
.lone>*{grid-column:1}.lone .pan{grid-column:2;grid-row:1/span 4}}
.cell{stroke:var(--rule);stroke-width:1}.border{fill:none;stroke:var(--ink);stroke-width:1.2}
svg text.name{fill:var(--ink)}svg text.number{fill:var(--ink)}svg text.strong{fill:var(--card)}
.line{fill:none;stroke-linejoin:round;stroke-linecap:round}
.dot{stroke:var(--card);stroke-width:1}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:0 0 8px;padding:0;
font-size:14px}
.legend li{display:flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.legend svg{width:26px;height:12px;flex:none}
.scroll{overflow-x:auto;margin-top:14px;border:1px solid var(--rule);border-radius:12px;
background:linear-gradient(to left,var(--card) 30px,transparent) right/60px 100% no-repeat local,
linear-gradient(to left,var(--rule),transparent) right/22px 100% no-repeat scroll var(--card)}
.scroll.compact{width:fit-content;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:14.5px;font-variant-numeric:tabular-nums}
th,td{padding:8px 14px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;color:var(--quiet);font-size:13px}
tbody th{color:var(--ink);font-size:14.5px;font-weight:500}
th:first-child{position:sticky;left:0;background:var(--card)}
th:first-child,td.text,th.text{text-align:left}
td.long{white-space:normal;min-width:12em;max-width:26em;overflow-wrap:anywhere}
tr:last-child>*{border-bottom:0}
tr.total>*{font-weight:650;border-top:2px solid var(--rule)}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
.notes{margin:10px 0 0;padding-left:20px;font-size:14.5px;overflow-wrap:anywhere}
details{margin-top:14px}summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:14px 16px;font:13.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
dl.pairs{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:14px 0 0;
font-size:14.5px}
dl.pairs dt{color:var(--quiet)}dl.pairs dd{margin:0;overflow-wrap:anywhere}
@media (max-width:480px){main{padding:24px 14px 48px}
.facts div{padding:12px 14px;flex-basis:40%}.facts dd{font-size:22px}figure{padding:12px 10px 8px}
th,td{padding:8px}h2{margin-top:38px}table{font-size:13.5px}
tbody th{font-size:13.5px}dl.pairs{grid-template-columns:1fr;gap:0}dl.pairs dd{margin-bottom:8px}}
@media print{main{padding:0;max-width:none}pre{white-space:pre-wrap}
.charts{grid-template-columns:1fr 1fr}.pan{overflow:visible}.pan svg{min-width:0!important}
body{font-size:12px}.scroll{overflow:visible;border-radius:0;background:none}th,td{padding:4px 6px}
h2{break-after:avoid}details::details-content{content-visibility:visible;block-size:auto}}
"""
)

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{{ title }}</title><style>{{ css }}</style></head><body><main>
"""

MACROS = """
{%- macro chart(figure) -%}
<figure{% if figure.wide %} class="wide"{% elif figure.lone %} class="lone"{% endif -%}
><h3>{{ figure.title }}</h3>
<figcaption>{{ figure.caption }}</figcaption>
{%- if figure.legend %}<ul class="legend">{% for item in figure.legend -%}
<li>{{ item.mark }}<span>{{ item.name }}</span></li>{% endfor %}</ul>{% endif -%}
<div class="pan">{{ figure.svg }}</div></figure>
{%- endmacro -%}
{%- macro pairs(items) -%}
<dl class="pairs">{% for name, value in items -%}
<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{%- endmacro -%}
{%- macro table(t) -%}
<div class="scroll{% if t.compact %} compact{% endif %}"><table><thead><tr>
{%- for name in t.columns -%}
<th{% if name in t.text %} class="text"{% endif %} scope="col">{{ name }}</th>
{%- endfor %}</tr></thead><tbody>
{%- for row in t.rows %}<tr{% if loop.last and t.total %} class="total"{% endif %}>
{%- for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else -%}
{% set name = t.columns[loop.index0] -%}
<td{% if name in t.text %} class="text{% if name in t.long %} long{% endif %}"{% endif %}>
{{- cell }}</td>
{%- endif %}{% endfor %}</tr>{% endfor %}</tbody></table></div>
{%- endmacro -%}
"""

REPORT = (
    MACROS
    + HEAD
    + """
<header><div class="kicker">Federated run ·
<span class="status {{ 'good' if status == 'completed' else 'bad' }}">{{ status }}</span></div>
<h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
{% if why %}<p class="status bad">{{ why }}</p>{% endif %}
<dl class="facts">{% for fact in facts %}
<div><dt>{{ fact.name }}</dt>
<dd>{{ fact.value }}<small>{{ fact.note }}</small></dd></div>{% endfor %}</dl>
</header>
{% if ran %}<section><h2>What ran</h2>{{ pairs(ran) }}</section>{% endif %}
<section><h2>How it went</h2><div class="charts">{% for figure in figures %}{{ chart(figure) }}
{% endfor %}</div></section>
{% if found %}<section><h2>What it found</h2><div class="charts">
{% for figure in found %}{{ chart(figure) }}
{% endfor %}</div></section>{% endif %}
<section><h2>Tasks</h2><p class="quiet">The models of the last round on each task's whole
evaluation set (mean over the task's clients); last, on the clients' own slices of it. A dash: there
is no such number.</p>
{{ table(tasks) }}</section>
{% if merge.rows %}<section><h2>Merge, last round</h2><p class="quiet">Errors are relative: 0 is
exact, 1 a distance as large as the update itself. A dash: there is no such number.</p>
{{ table(merge) }}</section>{% endif %}
<section><h2>Clients</h2>
<details{% if clients.rows | length <= 24 %} open="open"{% endif %}>
<summary>{{ clients.rows | length }} clients</summary>{{ table(clients) }}</details></section>
{% if quarantine.rows %}<section><h2>Quarantined clients</h2><p class="quiet">Answers that were
refused before any strategy saw them. None has a part in a model or a mean; each counts as lost, and
its client was asked again in the next round.</p>{{ table(quarantine) }}</section>{% endif %}
{% if failures.rows %}<section><h2>What went wrong</h2>{{ table(failures) }}</section>{% endif %}
<section><h2>Bytes by kind</h2>
<p class="quiet">Measured on the serialised messages; MB = 10⁶ bytes.</p>
{{ table(kinds) }}</section>
{% if notes %}<section><h2>Notes</h2><details{% if notes | length <= 8 %} open="open"{% endif %}>
<summary>What clients and server had to say</summary><ul class="notes">
{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul></details></section>{% endif %}
<section><h2>Run it again</h2>
<p>The configuration below is <code>config.toml</code> of the run directory. On a CPU the same seed,
machine and PyTorch build give the same numbers to the bit; clocks and memory differ.</p>
<pre>{{ commands }}</pre>
<details><summary>Resolved configuration</summary><pre>{{ config }}</pre></details></section>
{% if sessions.rows %}<section><h2>Sessions</h2>
<p class="quiet">{{ sessions.rows | length }} sessions: the run was stopped, killed or
failed, and went on from its last commit. What a round that was cut short had measured is not
kept.</p>{{ table(sessions) }}</section>{% endif %}
<section><h2>Where it comes from</h2>{{ pairs(origin) }}</section>
</main></body></html>
"""
)

COMPARISON = (
    MACROS
    + HEAD
    + """
<header><div class="kicker">Comparison</div><h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p></header>
{% for panel in panels %}<section><h2>{{ panel.title }}</h2><p class="quiet">{{ panel.text }}</p>
<div class="charts">{% for figure in panel.figures %}{{ chart(figure) }}{% endfor %}</div>
{% if panel.groups.rows %}{{ table(panel.groups) }}
<details><summary>{{ panel.count }}</summary>{{ table(panel.table) }}</details>
{% else %}{{ table(panel.table) }}{% endif %}
{% if panel.differences.rows %}<details open="open">
<summary>What differs in their configurations</summary>
{{ table(panel.differences) }}</details>{% endif %}</section>{% endfor %}
</main></body></html>
"""
)
