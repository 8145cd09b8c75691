"""The page's style sheet: light, dark and print, from a phone to a wide screen; system fonts only."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d5dae0; --band: #f4f6f8; --focus: #0072b2;
  --c0: #0072b2; --c1: #c8500a; --c2: #007a5a; --c3: #a3407f; --c4: #8a6a00; --c5: #4d5560;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e8ebee; --soft: #a3acb6; --rule: #3a4149; --band: #1d2127; --focus: #56b4e9;
    --c0: #56b4e9; --c1: #ff9d5c; --c2: #35c79a; --c3: #ee9fcb; --c4: #e3c34a; --c5: #b4bcc6;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }
body {
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  max-width: 1320px; margin: 0 auto; padding: 24px 20px 64px; overflow-wrap: anywhere;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 44px 0 10px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 24px 0 6px; }
p, li { max-width: 76ch; }
p { margin: 6px 0; }
.soft, small, caption, figcaption { color: var(--soft); }
ul { margin: 6px 0; padding-left: 20px; }
li { margin: 4px 0; }

.scroll {
  overflow-x: auto; margin: 10px 0; border: 1px solid var(--rule); border-radius: 6px;
  width: fit-content; max-width: 100%;
}
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 8px 12px; }
caption span { display: block; position: sticky; left: 12px; width: fit-content; max-width: calc(100vw - 72px); }
th, td {
  padding: 7px 10px; text-align: left; vertical-align: top; white-space: nowrap; overflow-wrap: normal;
  border-top: 1px solid var(--rule);
}
thead th { font-weight: 600; color: var(--soft); background: var(--band); vertical-align: bottom; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
thead th { white-space: normal; text-wrap: balance; max-width: 10rem; }
td.wide { white-space: normal; min-width: 14rem; max-width: 26rem; overflow-wrap: anywhere; }
tbody th span { display: block; width: max-content; max-width: 15rem; white-space: normal; overflow-wrap: break-word; }
.n { text-align: right; }
small { display: block; font-size: .85em; }

.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; }
.legend li { display: flex; align-items: center; gap: 8px; margin: 0; }
.swatch { width: 28px; height: 14px; flex: none; }
.charts { display: grid; gap: 16px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure > svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; }
svg text { font-size: 16px; fill: var(--soft); }
.grid { stroke: var(--rule); vector-effect: non-scaling-stroke; }
.axis { stroke: var(--soft); vector-effect: non-scaling-stroke; }
polyline { fill: none; stroke: var(--c); vector-effect: non-scaling-stroke; stroke-linejoin: round; }
polyline.mean { stroke-width: 2.2; }
polyline.seed { stroke-width: 1; stroke-opacity: .45; }
svg path { fill: var(--c); stroke: var(--paper); stroke-width: 1; }
.m0 { --c: var(--c0); } .m1 { --c: var(--c1); } .m2 { --c: var(--c2); }
.m3 { --c: var(--c3); } .m4 { --c: var(--c4); } .m5 { --c: var(--c5); }

details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; padding: 6px 0; }
@media (min-width: 960px) { svg text { font-size: 12.5px; } }
@media (max-width: 560px) {
  body { padding: 18px 14px 48px; }
  th, td { padding: 6px 9px; }
  tbody th span { max-width: 7.5rem; }
}
@media print {
  @page { size: landscape; margin: 14mm; }
  :root {
    --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --band: #f2f2f2;
    --c0: #0072b2; --c1: #c8500a; --c2: #007a5a; --c3: #a3407f; --c4: #8a6a00; --c5: #4d5560;
  }
  body { font-size: 10pt; max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; border: 0; max-width: none; }
  table { font-size: 7.5pt; }
  th, td { white-space: normal; padding: 3px 5px; }
  tbody th span { width: auto; }
  tbody th, caption span { position: static; max-width: none; }
  .charts { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; display: block; block-size: auto; }
}
"""
