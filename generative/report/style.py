"""How the page looks: light, pictures side by side on a wide screen, one below the other on a telephone."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light; --ink: #202124; --soft: #5f6368; --line: #dadce0; --wash: #f8f9fa; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 28px 72px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 52px 0 14px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 8px; overflow-wrap: anywhere; }
p { max-width: 80ch; margin: 0 0 12px; }
nav { margin: 18px 0 0; display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 0.92rem; }
a { color: #0b57d0; text-decoration: none; }
a:hover { text-decoration: underline; }
small { display: block; font-size: 0.78rem; font-weight: 400; color: var(--soft); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.84rem; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 0 0 12px;
  overflow-x: auto; line-height: 1.6; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 0 0 12px; }
summary { cursor: pointer; color: #0b57d0; margin-bottom: 8px; }
details pre { max-height: 480px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
.scroll { overflow-x: auto; margin: 0 0 18px; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 9px 8px; text-align: right; vertical-align: baseline; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { font-size: 0.78rem; line-height: 1.35; font-weight: 600; color: var(--soft); vertical-align: bottom;
  white-space: normal; }
thead tr:first-child th { border-bottom-color: transparent; }
thead th[rowspan] { border-bottom-color: var(--line) !important; }
thead th.span { text-align: center; }
thead tr + tr th { padding-top: 0; white-space: nowrap; }
tr > th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead tr + tr th:first-child { position: static; text-align: right; }
table.scores { table-layout: fixed; min-width: 720px; }
table.scores th:first-child { width: 15em; }
table.scores thead tr + tr th:first-child { width: auto; }
table.scores thead th { overflow-wrap: break-word; hyphens: auto; }
table.texts { min-width: 600px; table-layout: fixed; }
table.texts th, table.texts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.texts th:first-child { width: 24em; max-width: none; }
tbody th { font-weight: 600; white-space: normal; overflow-wrap: break-word; min-width: 140px; max-width: 220px; }
tbody th small { margin-left: 19px; }
td.best { font-weight: 700; }
tr.real th, tr.real td { color: var(--soft); font-weight: 400; background: var(--wash); }
tr.group th { background: #fff; color: var(--soft); font-size: 0.8rem; padding-top: 18px; }
.arrow { color: var(--ink); font-weight: 700; }
.protocol, .note { font-size: 0.9rem; color: #3c4043; max-width: 100ch; overflow-wrap: anywhere; }
dl.protocol { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 18px; margin: 0 0 16px; }
dl.protocol dt { color: var(--soft); max-width: 34ch; }
dl.protocol dd { margin: 0; }
.warning { font-size: 0.9rem; max-width: 100ch; background: #fef7e0; border-left: 4px solid #e69f00; padding: 9px 13px;
  border-radius: 4px; }
.grids { display: grid; gap: 26px 22px; grid-template-columns: repeat(auto-fit, minmax(min(262px, 100%), 1fr));
  align-items: start; }
.plots { display: grid; gap: 26px 22px; grid-template-columns: repeat(auto-fit, minmax(min(262px, 100%), 1fr));
  margin-bottom: 28px; }
figure { margin: 0; min-width: 0; max-width: 480px; }
.plots figure { max-width: 400px; }
figcaption { font-size: 0.84rem; color: var(--soft); margin-top: 6px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.grid { display: flex; gap: 6px; }
.grid img { width: 100%; min-width: 0; height: auto; display: block; }
.labels { display: flex; flex-direction: column; font-size: 0.8rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.labels span { flex: 1; display: flex; align-items: center; justify-content: flex-end; min-height: 0; line-height: 1; }
.pixelated { image-rendering: pixelated; }
.strip { margin-top: 14px; }
.strip p { font-size: 0.78rem; color: var(--soft); margin: 0 0 6px; line-height: 1.35; }
.strip .rows { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 3px 7px; align-items: center;
  font-size: 0.74rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.strip .rows span { text-align: right; }
.strip img { width: 100%; height: auto; display: block; }
.thumbnails { display: grid; gap: 10px; grid-template-columns: repeat(var(--columns), minmax(0, 220px));
  margin: 0 0 18px; }
.thumbnails img { width: 100%; height: auto; display: block; }
.thumbnails figcaption { margin-top: 3px; font-size: 0.76rem; }
.empty { border: 1px dashed var(--line); border-radius: 8px; padding: 28px 16px; text-align: center; color: var(--soft);
  font-size: 0.9rem; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0; margin: 0 0 12px; font-size: 0.88rem; }
.legend i { display: inline-block; width: 22px; border-top: 3px solid; margin-right: 7px; vertical-align: middle; }
footer { margin-top: 44px; font-size: 0.84rem; color: var(--soft); }
@media (max-width: 600px) { main { padding: 24px 16px 48px; } h1 { font-size: 1.6rem; } h2 { margin-top: 38px; }
  dl.protocol { grid-template-columns: 1fr; gap: 0; } dl.protocol dd { margin-bottom: 8px; }
  .thumbnails { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  th, td { padding: 8px 9px; } tbody th { max-width: 150px; } }
@media print { main { max-width: none; padding: 0; } nav { display: none; } figure { break-inside: avoid; } }
"""
